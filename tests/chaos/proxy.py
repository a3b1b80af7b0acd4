"""A TCP proxy on loopback that resets and freezes connections; one for object stores also injects errors."""

import asyncio
import contextlib
import random
import threading
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Self

HOST = "127.0.0.1"


class FaultProxy:
    """Forwards connections to a port while the `with` block runs; while it is `down`, it resets new ones."""

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.port = 0
        self.down = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._writers: set[asyncio.StreamWriter] = set()
        self._gates: set[asyncio.Event] = set()
        self._server: asyncio.Server | None = None

    def freeze(self) -> None:
        """Stop forwarding over the open connections without closing them, like a firewall that drops them."""
        self._call(self._freeze())

    def reset(self) -> None:
        """Reset every open connection."""
        self._call(self._reset())

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _freeze(self) -> None:
        for gate in self._gates:
            gate.clear()

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._serve, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._reset()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        _, left = await asyncio.wait(others, timeout=5) if others else (None, ())
        for task in left:
            task.cancel()

    async def _reset(self) -> None:
        for gate in self._gates:
            gate.set()  # so that a frozen connection ends too
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.down:
            writer.transport.abort()
            return
        try:
            onward_reader, onward_writer = await asyncio.open_connection(HOST, self.target_port)
        except OSError:
            writer.transport.abort()
            return
        pair, gate = {writer, onward_writer}, asyncio.Event()
        gate.set()
        self._gates.add(gate)
        self._writers |= pair
        try:
            await asyncio.gather(
                self._pump(reader, onward_writer, gate, self._to_server(writer)),
                self._pump(onward_reader, writer, gate, self._to_client(writer)),
            )
        finally:
            self._gates.discard(gate)
            self._writers -= pair
            for each in pair:
                each.transport.abort()

    def _to_server(self, client: asyncio.StreamWriter) -> "Change":  # noqa: ARG002 - a hook
        return _unchanged

    def _to_client(self, client: asyncio.StreamWriter) -> "Change":  # noqa: ARG002 - a hook
        return _unchanged

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        gate: asyncio.Event,
        change: "Change",
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(16_384):
                await gate.wait()
                writer.write(await change(data))
                await writer.drain()
        writer.transport.abort()  # ends the other direction too


Change = Callable[[bytes], Awaitable[bytes]]


async def _unchanged(data: bytes) -> bytes:
    return data


class StoreProxy(FaultProxy):
    """A proxy in front of an object store.

    `error_share` (0..1) of the requests are answered with 500 or 503. `cut_share` (0..1) of the pieces of
    replies, of at most 16 KiB, are cut in half and end their connection. `latency_seconds` delays each
    request.
    """

    def __init__(self, target_port: int) -> None:
        super().__init__(target_port)
        self.error_share = 0.0
        self.cut_share = 0.0
        self.latency_seconds = 0.0
        #: Number of injected errors and of cut replies.
        self.errors = self.cuts = 0
        self._random = random.Random(1)

    def _to_server(self, client: asyncio.StreamWriter) -> Change:
        async def change(data: bytes) -> bytes:
            if not data.startswith(b"GET "):
                return data
            await asyncio.sleep(self.latency_seconds)
            if self._random.random() >= self.error_share:
                return data
            self.errors += 1
            client.write(self._random.choice(_ERRORS))
            return b""

        return change

    def _to_client(self, client: asyncio.StreamWriter) -> Change:
        async def change(data: bytes) -> bytes:
            if self._random.random() >= self.cut_share:
                return data
            self.cuts += 1
            client.write(data[: len(data) // 2])
            await asyncio.sleep(0.01)  # sends what was written before the reset
            client.transport.abort()
            return b""

        return change


def _error(status: str, code: str) -> bytes:
    body = f"<Error><Code>{code}</Code><Message>Try again.</Message></Error>"
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    return (head + body).encode()


_ERRORS = (
    _error("503 Service Unavailable", "SlowDown"),
    _error("500 Internal Server Error", "InternalError"),
)
