"""One small HTTP server for probes and metrics."""

import json
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from worker.telemetry.logs import get_logger

log = get_logger(__name__)

# A caller that sends nothing holds a thread for no longer.
_PATIENCE_SECONDS = 10


@dataclass(frozen=True)
class Answer:
    """The answer of a probe: whether all is well, the `reason` in words, and figures that explain it."""

    ok: bool
    reason: str
    figures: Mapping[str, object]


class EndpointsUnavailableError(OSError):
    """The address cannot be listened on."""


class Endpoints:
    """Serves `/metrics` of a registry, and probes by path, each on a thread of its own.

    A probe's status is 200 or 503 and its body a JSON object with `ok`, `reason` and its figures. Port 0
    takes any free one; `port` says which. Raises `EndpointsUnavailableError`.
    """

    def __init__(
        self, host: str, port: int, registry: CollectorRegistry, probes: Mapping[str, Callable[[], Answer]]
    ) -> None:
        class Handler(_Handler):
            pass

        Handler.registry = registry
        Handler.probes = probes
        try:
            self._server = _server_class(host)((host, port), Handler)
        except OSError as error:
            raise EndpointsUnavailableError(
                f"cannot listen on {host}:{port}: {error.strerror or error}"
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="endpoints", daemon=True)
        self._thread.start()
        log.info("endpoints_served", host=host, port=self.port, paths=["/metrics", *probes])

    @property
    def port(self) -> int:
        """The port."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _server_class(host: str) -> type[ThreadingHTTPServer]:
    class Server(ThreadingHTTPServer):
        daemon_threads = True
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Say nothing: a caller that hangs up in the midst is no event."""

    return Server


class _Handler(BaseHTTPRequestHandler):
    registry: CollectorRegistry
    probes: Mapping[str, Callable[[], Answer]]
    timeout = _PATIENCE_SECONDS
    server_version = "dnf-worker"
    sys_version = ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            encode, kind = choose_encoder(self.headers.get("Accept", ""))
            self._send(200, kind, encode(self.registry))
        elif probe := self.probes.get(path):
            answer = probe()
            body = {"ok": answer.ok, "reason": answer.reason, **answer.figures}
            self._send(200 if answer.ok else 503, "application/json", json.dumps(body).encode() + b"\n")
        else:
            known = ", ".join(["/metrics", *self.probes])
            self._send(404, "text/plain", f"there is {known}\n".encode())

    do_HEAD = do_GET  # noqa: N815 - the base class's name

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's signature
        """Say nothing: a probe every few seconds is no event."""
