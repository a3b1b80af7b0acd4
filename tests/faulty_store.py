"""An S3 endpoint that fails in every way that a test asks for."""

import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Behaviour = Callable[[BaseHTTPRequestHandler], None]

BODY = b"x" * 5000
SILENT_SECONDS = 12.0


class FaultyStore:
    """An S3 endpoint that follows `behaviours`, one for each request; the last one is repeated."""

    def __init__(self) -> None:
        self.behaviours: list[Behaviour] = []
        self.requests = 0
        #: Bytes of endless replies that were taken.
        self.sent = 0
        #: The Host header of each request, and all headers of the last upload.
        self.hosts: list[str] = []
        self.put_headers: dict[str, str] = {}
        #: All headers of the last download, and the connections so far.
        self.get_headers: dict[str, str] = {}
        self.connections = 0
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                store.connections += 1
                super().setup()

            def do_GET(self) -> None:
                store.requests += 1
                store.hosts.append(self.headers["Host"])
                store.get_headers = dict(self.headers)
                behaviours = store.behaviours
                (behaviours.pop(0) if len(behaviours) > 1 else behaviours[0])(self)

            do_POST = do_GET  # noqa: N815 - the base class's name

            def do_PUT(self) -> None:
                store.put_headers = dict(self.headers)
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
                """No-op: requests are not logged."""

        Handler.store = self  # type: ignore[attr-defined]
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def error(status: int, code: str, message: str = "m") -> Behaviour:
    """Reply with an error of S3, or of a proxy before it if there is no code."""

    def behave(request: BaseHTTPRequestHandler) -> None:
        body = (
            f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
            if code
            else b"<html>no</html>"
        )
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    return behave


def serve(data: bytes, **headers: str) -> Behaviour:
    """Reply with an object."""

    def behave(request: BaseHTTPRequestHandler) -> None:
        _begin(request, len(data), **headers)
        request.wfile.write(data)

    return behave


def temporary_keys(key: str, expire: datetime) -> Behaviour:
    """Reply as Amazon's STS to AssumeRoleWithWebIdentity, with keys until a time."""
    credentials = (
        f"<AccessKeyId>{key}</AccessKeyId><SecretAccessKey>secret of {key}</SecretAccessKey>"
        f"<SessionToken>token of {key}</SessionToken><Expiration>{expire.isoformat()}</Expiration>"
    )
    document = f"<Credentials>{credentials}</Credentials>"
    for element in ("AssumeRoleWithWebIdentityResult", "AssumeRoleWithWebIdentityResponse"):
        document = f"<{element}>{document}</{element}>"
    return serve(document.encode())


def announce(length: int) -> Behaviour:
    """Reply with a length and close the connection."""

    def behave(request: BaseHTTPRequestHandler) -> None:
        _begin(request, length)
        request.close_connection = True

    return behave


def _begin(request: BaseHTTPRequestHandler, length: int, **headers: str) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(length))
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()


def reset(request: BaseHTTPRequestHandler) -> None:
    """Reset the connection."""
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.connection.close()
    request.close_connection = True


def reset_amid_body(request: BaseHTTPRequestHandler) -> None:
    """Reset the connection after a part of the object."""
    _begin(request, len(BODY))
    request.wfile.write(BODY[:2000])
    reset(request)


def close_amid_body(request: BaseHTTPRequestHandler) -> None:
    """Close the connection after a part of the object."""
    _begin(request, len(BODY))
    request.wfile.write(BODY[:2000])
    request.close_connection = True


def silent(request: BaseHTTPRequestHandler) -> None:
    """Accept the request and never reply."""
    time.sleep(SILENT_SECONDS)
    request.close_connection = True


def trickle(request: BaseHTTPRequestHandler) -> None:
    """Send a byte of the object every tenth of a second."""
    _begin(request, len(BODY))
    request.close_connection = True
    with suppress(OSError):  # the reader gives up
        for at in range(len(BODY)):
            request.wfile.write(BODY[at : at + 1])
            time.sleep(0.1)


def corrupt(request: BaseHTTPRequestHandler) -> None:
    """Send an object with the checksum of another one."""
    _begin(request, len(BODY), x_amz_checksum_crc32="AAAAAA==")
    request.wfile.write(BODY)


def in_pieces(request: BaseHTTPRequestHandler) -> None:
    """Send the object with its length, in ten pieces."""
    _begin(request, len(BODY))
    for at in range(0, len(BODY), 500):
        request.wfile.write(BODY[at : at + 500])
        request.wfile.flush()
        time.sleep(0.01)


def in_chunks(request: BaseHTTPRequestHandler) -> None:
    """Send the object in chunks of 700 bytes, without its length."""
    _begin_chunks(request)
    for at in range(0, len(BODY), 700):
        _chunk(request, BODY[at : at + 700])
    _chunk(request, b"")


def in_endless_chunks(request: BaseHTTPRequestHandler) -> None:
    """Send chunks for as long as the client reads."""
    _begin_chunks(request)
    with suppress(OSError):
        while True:
            _chunk(request, bytes(1 << 16))


def close_between_chunks(request: BaseHTTPRequestHandler) -> None:
    """Close the connection after a complete chunk that is not the last."""
    _begin_chunks(request)
    _chunk(request, BODY[:2000])
    request.close_connection = True


def close_amid_chunk(request: BaseHTTPRequestHandler) -> None:
    """Close the connection after a part of a chunk."""
    _begin_chunks(request)
    request.wfile.write(b"%x\r\n" % len(BODY) + BODY[:2000])
    request.close_connection = True


def trickle_in_chunks(request: BaseHTTPRequestHandler) -> None:
    """Send a chunk of one byte every tenth of a second."""
    _begin_chunks(request)
    request.close_connection = True
    with suppress(OSError):
        for at in range(len(BODY)):
            _chunk(request, BODY[at : at + 1])
            time.sleep(0.1)


def _begin_chunks(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Transfer-Encoding", "chunked")
    request.end_headers()


def _chunk(request: BaseHTTPRequestHandler, data: bytes) -> None:
    request.wfile.write(b"%x\r\n" % len(data) + data + b"\r\n")


def trickle_header(request: BaseHTTPRequestHandler) -> None:
    """Send a header one byte every tenth of a second."""
    request.wfile.write(b"HTTP/1.1 200 OK\r\nx-slow: ")
    _trickle(request)


def trickle_error(request: BaseHTTPRequestHandler) -> None:
    """Send an error one byte every tenth of a second."""
    request.wfile.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 1000\r\n\r\n")
    _trickle(request)


def endless_error(request: BaseHTTPRequestHandler) -> None:
    """Send an error for as long as it is read."""
    request.wfile.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 800000000\r\n\r\n")
    _pour(request, bytes(1 << 16))


def endless_headers(request: BaseHTTPRequestHandler) -> None:
    """Send interim replies for as long as they are read."""
    _pour(request, b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)


def _trickle(request: BaseHTTPRequestHandler) -> None:
    request.close_connection = True
    with suppress(OSError):  # the reader gives up
        for _ in range(1000):
            request.wfile.write(b"x")
            time.sleep(0.1)


def _pour(request: BaseHTTPRequestHandler, piece: bytes) -> None:
    request.close_connection = True
    store: FaultyStore = request.store  # type: ignore[attr-defined]
    with suppress(OSError):
        while True:
            request.wfile.write(piece)
            store.sent += len(piece)
