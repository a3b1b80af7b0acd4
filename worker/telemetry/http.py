"""The HTTP server for metrics and probes."""

import json
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from wsgiref.simple_server import WSGIRequestHandler

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from worker.telemetry.logs import get_logger

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = get_logger(__name__)


@dataclass(frozen=True)
class Answer:
    """The result of a probe: whether it passes, the `reason` in words, and figures that explain it."""

    ok: bool
    reason: str
    figures: Mapping[str, object]


class EndpointsUnavailableError(OSError):
    """The server cannot listen on its address."""


class Endpoints:
    """Serves `/metrics` of a registry and probes by path, each request on a thread of its own.

    A probe has status 200 or 503 and a JSON object with `ok`, `reason` and its figures. Port 0 chooses a free
    port; the host `::` is every address, IPv4 too. Raises `EndpointsUnavailableError`.
    """

    def __init__(
        self, host: str, port: int, registry: CollectorRegistry, probes: Mapping[str, Callable[[], Answer]]
    ) -> None:
        # A machine without IPv6 has every address of IPv4.
        if host == "::" and not socket.has_dualstack_ipv6():
            host = "0.0.0.0"  # noqa: S104  # nosec B104

        class Server(_Server):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        try:
            self._server = Server((host, port), _Handler)
        except OSError as error:
            raise EndpointsUnavailableError(
                f"cannot listen on {f'[{host}]' if ':' in host else host}:{port}: {error.strerror or error}"
            ) from error
        self._server.set_app(_application(registry, probes))
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


def _application(
    registry: CollectorRegistry, probes: Mapping[str, Callable[[], Answer]]
) -> "WSGIApplication":
    metrics = make_wsgi_app(registry)

    def application(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            metrics_page: Iterable[bytes] = metrics(environ, start_response)
            return metrics_page
        if probe := probes.get(path):
            answer = probe()
            status = "200 OK" if answer.ok else "503 Service Unavailable"
            document = {"ok": answer.ok, "reason": answer.reason, **answer.figures}
            kind, body = "application/json", json.dumps(document)
        else:
            status = "404 Not Found"
            kind, body = "text/plain", f"paths: {', '.join(['/metrics', *probes])}"
        start_response(status, [("Content-Type", kind)])
        return [f"{body}\n".encode()]

    return application


class _Server(ThreadingWSGIServer):
    def server_bind(self) -> None:
        """Bind; `::` takes IPv4 too, whatever the system's default is."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a client that disconnects or sends nothing."""


class _Handler(WSGIRequestHandler):
    # A client that sends nothing occupies a thread for this long, in seconds.
    timeout = 10

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's signature
        """Log nothing: probes come every few seconds."""
