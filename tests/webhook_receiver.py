"""A receiver of webhooks that answers as a test says, over HTTP or TLS."""

import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from standardwebhooks import Webhook

from tests.conftest import PATIENCE
from tests.tls import Certificate
from worker.embedded.startup import HOST


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds * PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@dataclass(frozen=True)
class Received:
    """One request."""

    path: str
    headers: dict[str, str]
    body: str

    def verified(self, whsec: str) -> Any:
        """Return the JSON of a body that this secret signed. Raises `WebhookVerificationError`."""
        return Webhook(whsec).verify(self.body, self.headers)


class Receiver:
    """Answers requests, one after the other, with the given statuses and headers, the last one for ever.

    With `certificate` over TLS; `names` collects the names that clients ask for in the handshake (SNI).
    """

    def __init__(
        self,
        answers: Sequence[tuple[int, dict[str, str]]] = ((200, {}),),
        *,
        certificate: Certificate | None = None,
        before_answer: Callable[[], None] = lambda: None,
    ) -> None:
        self.received: list[Received] = []
        self.names: list[str | None] = []
        self.connections = 0
        self._answers = list(answers)
        self._lock = threading.Lock()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"])).decode()
                with receiver._lock:
                    headers = {name.lower(): value for name, value in self.headers.items()}
                    receiver.received.append(Received(self.path, headers, body))
                    status, fields = (
                        receiver._answers.pop(0) if len(receiver._answers) > 1 else receiver._answers[0]
                    )
                before_answer()
                self.send_response(status)
                for name, value in fields.items():
                    self.send_header(name, value)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's signature
                """Print nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def get_request(self) -> tuple[Any, Any]:
                connected = super().get_request()
                receiver.connections += 1
                return connected

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Say nothing of a client that refuses the certificate."""

        self._server = Server((HOST, 0), Handler)
        if certificate:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(*certificate)
            context.sni_callback = lambda _socket, name, _context: self.names.append(name)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def port(self) -> int:
        """Where it listens on this machine."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """Its http:// URL."""
        return f"http://{HOST}:{self.port}/hook"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
