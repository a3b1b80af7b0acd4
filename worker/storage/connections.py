"""Requests on connections that botocore opened and keeps, without urllib3's work for each.

Whatever is unusual stays with botocore: the first request of a connection, a proxy, a request with a body.
"""

import http.client
import queue
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from botocore.awsrequest import AWSResponse
from botocore.exceptions import ConnectionClosedError, ReadTimeoutError
from urllib3.exceptions import ProtocolError
from urllib3.util.connection import is_connection_dropped

if TYPE_CHECKING:
    from botocore.awsrequest import AWSPreparedRequest
    from botocore.httpsession import URLLib3Session

_Connection = http.client.HTTPConnection


class KeptConnections:
    """The open connections of a botocore session; safe for threads."""

    def __init__(self, session: "URLLib3Session", *, timeout_seconds: float) -> None:
        self._session: Any = session
        self._timeout_seconds = timeout_seconds
        self._pools: dict[str, Any] = {}

    def send(self, request: "AWSPreparedRequest") -> AWSResponse:
        """Return the answer to a request, whose body is still to be read. Raises BotoCoreError."""
        answered = self._get(request) if request.method == "GET" else None
        response: AWSResponse = answered or self._session.send(request)
        return response

    def _get(self, request: "AWSPreparedRequest") -> AWSResponse | None:
        """Return the answer on a kept connection; None where there is none that the store has kept too."""
        pool, url = self._pool(request.url), urlsplit(request.url)
        connection = _kept(pool) if pool else None
        if connection is None:
            return None
        target = f"{url.path}?{url.query}" if url.query else url.path
        headers: Any = request.headers
        try:
            connection.sock.settimeout(self._timeout_seconds)
            # urllib3's own methods, around these, cost more than the exchange.
            _Connection.request(connection, "GET", target, headers=headers)
            reply = _Connection.getresponse(connection)
        except ConnectionError:
            # The store ended it while it was idle.
            _ended(pool, connection)
            return None
        except TimeoutError as error:
            _ended(pool, connection)
            raise ReadTimeoutError(endpoint_url=request.url, error=error) from error
        except (OSError, http.client.HTTPException) as error:
            _ended(pool, connection)
            raise ConnectionClosedError(endpoint_url=request.url, request=request, error=error) from error
        except BaseException:
            _ended(pool, connection)
            raise
        headers = _joined(reply.headers)
        return AWSResponse(request.url, reply.status, headers, _Body(reply, pool, connection))

    def _pool(self, url: str) -> Any:
        """Return urllib3's pool of a URL's host; None where requests go through a proxy."""
        parts = urlsplit(url)
        host = f"{parts.scheme}://{parts.netloc}"
        pool = self._pools.get(host)
        # urllib3 closes a pool when there are many hosts.
        if host not in self._pools or (pool and pool.pool is None):
            session = self._session
            proxy = session._proxy_config.proxy_url_for(url)  # noqa: SLF001 - tests hold these
            pool = None if proxy else session._manager.connection_from_url(url)  # noqa: SLF001
            self._pools[host] = pool
        return pool


def _kept(pool: Any) -> Any:
    """Return an open connection of a pool, or None.

    It makes none: one that was made before botocore has told the pool which certificates to trust would trust
    others.
    """
    try:
        connection = pool.pool.get(block=False)
    except (queue.Empty, AttributeError):
        return None
    if connection is not None and connection.sock is not None and not is_connection_dropped(connection):
        return connection
    pool._put_conn(connection)  # noqa: SLF001
    return None


def _joined(headers: http.client.HTTPMessage) -> dict[str, str]:
    """Return headers by name, those of one name as a list in one value."""
    joined: dict[str, str] = {}
    for name, value in headers.items():
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined


def _ended(pool: Any, connection: Any) -> None:
    connection.close()
    pool._put_conn(connection)  # noqa: SLF001


class _Body:
    """The body of an answer; at its end the connection is kept for the next request."""

    def __init__(self, reply: http.client.HTTPResponse, pool: Any, connection: Any) -> None:
        self._reply, self._pool, self._connection = reply, pool, connection

    def read1(self, amount: int) -> bytes:
        """Return what has arrived, at most `amount` bytes; nothing at the end.

        Raises urllib3's HTTPError and OSError.
        """
        if self._reply.isclosed():
            return b""
        try:
            data = self._reply.read1(amount)
        except http.client.HTTPException as error:
            raise ProtocolError(f"Connection broken: {error!r}", error) from error
        if self._reply.isclosed() or self._reply.length == 0:
            self._release(kept=not self._reply.will_close)
        return data

    def stream(self) -> Iterator[bytes]:
        """Yield the rest as it arrives; raises what `read1` does."""
        while data := self.read1(1 << 16):
            yield data

    def close(self) -> None:
        """Give up what was not read."""
        self._release(kept=False)

    def _release(self, *, kept: bool) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        self._reply.close()
        if not kept:
            connection.close()
        self._pool._put_conn(connection)  # noqa: SLF001
