"""One request of a webhook: to an address that was checked, within a time, without redirects or proxies."""

import asyncio
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Literal

import h11

from worker.webhooks.addresses import Addresses, Target

ExchangeReason = Literal["connection_failed", "certificate_refused", "timeout", "not_http"]

#: Limit of a whole exchange, in seconds.
EXCHANGE_SECONDS = 15.0
_MAX_HEADER_BYTES = 16 << 10
# What is read of an answer's body, so that the receiver can end its answer; nothing looks at it.
_DRAINED_BYTES, _DRAIN_SECONDS = 64 << 10, 1.0
_MAX_RETRY_AFTER_SECONDS = 86_400.0


class ExchangeFailedError(Exception):
    """The receiver gave no answer; `reason` is one of `ExchangeReason`, `str()` is the detail."""

    def __init__(self, reason: ExchangeReason, detail: str) -> None:
        super().__init__(detail)
        self.reason: ExchangeReason = reason


@dataclass(frozen=True)
class Answer:
    """What a receiver answered."""

    status: int
    #: Seconds that it asks to be left alone, at most a day; None when it does not say.
    retry_after_seconds: float | None


class Exchanges:
    """Sends requests to receivers; safe for threads.

    `ca_file` is a PEM of authorities to trust besides the system's.
    """

    def __init__(
        self, addresses: Addresses, *, ca_file: Path | None = None, seconds: float = EXCHANGE_SECONDS
    ) -> None:
        self._addresses = addresses
        self._seconds = seconds
        self._tls = ssl.create_default_context()
        if ca_file:
            self._tls.load_verify_locations(ca_file)

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Send a POST request and return the answer.

        The host's addresses are resolved and checked first, and the connection is made to one of them itself,
        so that no second look-up can name another. Raises `AddressRefusedError` and `ExchangeFailedError`.
        """
        target = self._addresses.target(url)
        try:
            return asyncio.run(self._within_time(target, headers, body))
        except TimeoutError as error:
            raise ExchangeFailedError("timeout", f"No answer within {self._seconds:g} seconds.") from error
        except ssl.SSLCertVerificationError as error:
            raise ExchangeFailedError("certificate_refused", f"{error.verify_message}.") from error
        except OSError as error:
            raise ExchangeFailedError("connection_failed", str(error)[:200]) from error
        except h11.RemoteProtocolError as error:
            raise ExchangeFailedError("not_http", str(error)[:200]) from error

    async def _within_time(self, target: Target, headers: Mapping[str, str], body: bytes) -> Answer:
        async with asyncio.timeout(self._seconds):
            reader, writer = await self._connected(target)
            try:
                return await _exchange(reader, writer, target, headers, body)
            finally:
                writer.close()

    async def _connected(self, target: Target) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        *others, last = target.addresses
        tls = self._tls if target.secure else None
        name = target.host if target.secure else None
        for address in others:
            with suppress(OSError):
                return await asyncio.open_connection(address, target.port, ssl=tls, server_hostname=name)
        return await asyncio.open_connection(last, target.port, ssl=tls, server_hostname=name)


async def _exchange(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    target: Target,
    headers: Mapping[str, str],
    body: bytes,
) -> Answer:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEADER_BYTES)
    fields = {"Host": target.authority, "Content-Length": str(len(body)), "Connection": "close", **headers}
    request = h11.Request(method="POST", target=target.path, headers=list(fields.items()))
    for part in (request, h11.Data(data=body), h11.EndOfMessage()):
        writer.write(connection.send(part) or b"")
    # The answer may come, and be a refusal, before the receiver has read all.
    answer: Answer | None = None
    while answer is None:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_MAX_HEADER_BYTES))
        elif isinstance(event, h11.Response):
            answer = Answer(event.status_code, _retry_after(dict(event.headers).get(b"retry-after", b"")))
        elif isinstance(event, h11.ConnectionClosed):
            raise ConnectionResetError("the receiver closed the connection without an answer")
    with suppress(OSError, h11.RemoteProtocolError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            drained = 0
            while drained < _DRAINED_BYTES and (data := await reader.read(_MAX_HEADER_BYTES)):
                drained += len(data)
    return answer


def _retry_after(value: bytes) -> float | None:
    text = value.decode("latin-1").strip()
    if text.isdecimal():
        seconds = float(text[:9])
    else:
        try:
            seconds = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
        except (TypeError, ValueError):
            return None
    return max(0.0, min(seconds, _MAX_RETRY_AFTER_SECONDS))
