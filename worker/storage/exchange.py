"""Exchange: one deadline and one size for all that the object store answers, headers and errors included.

botocore's timeouts limit a single wait for bytes, and it reads an error's body whole. Here the limits hold
where the bytes arrive: at the socket.
"""

import io
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from http.client import HTTPResponse
from typing import TYPE_CHECKING, Any

from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
)

if TYPE_CHECKING:
    from botocore.client import BaseClient

# Bytes of headers, and of an answer that is not an object; S3's own have some hundred.
_HEADER_BYTES = _ERROR_BYTES = 256 << 10
_FIRST_ERROR_STATUS = 300


class ReplyTooLongError(OSError):
    """The store sent more than the exchange may have."""


class Exchange:
    """The limits of one exchange: `seconds` from now for all attempts, `max_bytes` for the body of each."""

    def __init__(self, seconds: float, max_bytes: int) -> None:
        self._deadline = time.monotonic() + seconds
        self._max_bytes = self._remaining_bytes = max_bytes
        #: Whether more was sent than it may have.
        self.too_long = False

    @property
    def remaining_seconds(self) -> float:
        """Seconds until the deadline, 0.0 after it."""
        return max(0.0, self._deadline - time.monotonic())

    def expect_headers(self) -> None:
        """Allow what headers need from now on."""
        self._remaining_bytes = _HEADER_BYTES

    def expect_body(self, status: int) -> None:
        """Allow what the body of an answer with this status needs from now on."""
        self._remaining_bytes = _ERROR_BYTES if status >= _FIRST_ERROR_STATUS else self._max_bytes

    def allowed_bytes(self) -> int:
        """Return how many bytes may still come. Raises `ReplyTooLongError` when none may."""
        if self._remaining_bytes <= 0:
            self.too_long = True
            raise ReplyTooLongError("the store's answer is too long")
        return self._remaining_bytes

    def count(self, received: int) -> None:
        """Count bytes that have come."""
        self._remaining_bytes -= received


_current: ContextVar[Exchange | None] = ContextVar("exchange", default=None)


@contextmanager
def limited_exchange(seconds: float, max_bytes: int) -> Iterator[Exchange]:
    """Limit what is sent and received in the block, on this thread."""
    exchange = Exchange(seconds, max_bytes)
    token = _current.set(exchange)
    try:
        yield exchange
    finally:
        _current.reset(token)


def current_exchange() -> Exchange | None:
    """Return the exchange that this thread is in."""
    return _current.get()


def limit_exchanges(client: "BaseClient") -> None:
    """Let a client's connections keep the limits of the exchange that they are used in."""
    # botocore has no public way to exchange the connections; a test holds this one.
    session = client._endpoint.http_session  # type: ignore[attr-defined] # noqa: SLF001
    session._pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}  # noqa: SLF001
    session._manager.pool_classes_by_scheme = session._pool_classes_by_scheme  # noqa: SLF001


class _LimitedIO(io.RawIOBase):
    """Reads from a socket within the limits of an exchange."""

    def __init__(self, connected: socket.socket, exchange: Exchange) -> None:
        self._socket = connected
        # Keeps the socket open when its connection is closed before the body is read.
        self._raw = connected.makefile("rb", buffering=0)
        self._exchange = exchange
        self._wait_seconds = connected.gettimeout()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        remaining = self._exchange.remaining_seconds
        if not remaining:
            raise TimeoutError("the store answers too slowly")
        allowed = self._exchange.allowed_bytes()
        self._socket.settimeout(min(remaining, self._wait_seconds or remaining))
        received: int = self._raw.readinto(memoryview(buffer)[:allowed]) or 0
        self._exchange.count(received)
        return received

    def close(self) -> None:
        self._raw.close()
        super().close()


class _LimitedSocket:
    """What a response needs of a socket."""

    def __init__(self, connected: socket.socket, exchange: Exchange) -> None:
        self._connected, self._exchange = connected, exchange

    def makefile(self, *_: Any) -> io.BufferedReader:
        return io.BufferedReader(_LimitedIO(self._connected, self._exchange))


class _Response(HTTPResponse):
    """A response that is read within the limits of the exchange it is in, if any."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        self._exchange = _current.get()
        limited: Any = _LimitedSocket(sock, self._exchange) if self._exchange else sock
        super().__init__(limited, *args, **kwargs)

    def begin(self) -> None:
        if self._exchange:
            self._exchange.expect_headers()
        super().begin()
        if self._exchange:
            self._exchange.expect_body(self.status)


class _Connection(AWSHTTPConnection):
    response_class = _Response  # type: ignore[assignment] # botocore names one of its own


class _SecureConnection(AWSHTTPSConnection):
    response_class = _Response  # type: ignore[assignment] # botocore names one of its own


class _Pool(AWSHTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(AWSHTTPSConnectionPool):
    ConnectionCls = _SecureConnection
