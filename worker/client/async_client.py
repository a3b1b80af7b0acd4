"""The client for asyncio; one connection reads the streams for everybody who waits."""

import asyncio
import contextlib
import socket
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self

import redis
from pydantic import JsonValue

from worker.broker import keys
from worker.broker.event_stream import Envelope, StreamEvent, entries_of, parsed
from worker.broker.verdict_stream import Event, parsed_event
from worker.checks.attempts import RETRY_FIELDS
from worker.client.async_broker import AsyncBroker
from worker.client.awaited import ENTRIES, Awaited, StreamReader, retries_in
from worker.client.errors import NoVerdictError, QueueUnreachableError
from worker.client.submission import (
    BEGINNING,
    Positions,
    chunks,
    entries,
    ordered,
    position_at,
    refuse_full,
    refuse_unknown,
    span_attributes,
)
from worker.contract.messages import (
    DEFAULT_QUEUE,
    DeadLetter,
    DecisionEvent,
    ImageCheck,
    QueueName,
    RejectionEvent,
    Verdict,
    VerdictEvent,
    read_decision,
    read_event,
)
from worker.settings import Settings
from worker.telemetry import tracing

if TYPE_CHECKING:
    from worker.storage import Storage

_Entries = list[tuple[str, dict[bytes, bytes]]]

# For so long a read of the streams goes on before those who came meanwhile are heard.
_SHARED_READ_SECONDS = 0.1


@dataclass(frozen=True)
class _Consumed(Generic[Envelope]):
    event: StreamEvent[Envelope]
    _broker: AsyncBroker
    _stream: str
    _group: str
    _consumer: str

    async def ack(self) -> None:
        """Acknowledge the event; until then another member of the group may claim it."""
        await self._broker.ask(self._broker.redis.xack, self._stream, self._group, self.event.entry_id)

    async def renew(self) -> None:
        """Start the time after which another member may claim the event anew: for long work."""
        ids = [self.event.entry_id]
        await self._broker.ask(
            self._broker.redis.xclaim, self._stream, self._group, self._consumer, 0, ids, justid=True
        )


class AsyncConsumedEvent(_Consumed[VerdictEvent | RejectionEvent]):
    """An event that a member of a consumer group received."""


class AsyncConsumedDecision(_Consumed[DecisionEvent]):
    """A person's decision that a member of a consumer group received."""


@dataclass(eq=False)
class _Waiting:
    """One call of `wait_for`."""

    awaited: Awaited
    since: str
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    #: Whether the newest events were read since it came.
    caught_up: bool = False
    error: QueueUnreachableError | None = None


class _Member:
    """A member of a consumer group: its own unacknowledged events first, then claimed ones, then new ones."""

    def __init__(
        self, broker: AsyncBroker, stream: str, group: str, name: str, claim_after_seconds: float
    ) -> None:
        self._name = name
        self._broker = broker
        self._stream = stream
        self._group = group
        self._claim_after_ms = int(claim_after_seconds * 1000)
        self._own, self._cursor = "0", "0-0"

    async def events(
        self, read: Callable[[str], Envelope], *, follow: bool
    ) -> AsyncIterator[StreamEvent[Envelope]]:
        """Yield events, for ever or until there is none; entries that cannot be read are acknowledged."""
        while True:
            entries = await self.read(self._broker.block_seconds if follow else 0.001)
            for entry_id, fields in entries:
                if event := parsed(entry_id, fields, read):
                    yield event
                else:
                    await self._broker.ask(self._broker.redis.xack, self._stream, self._group, entry_id)
            if not entries and not follow:
                return

    async def read(self, block_seconds: float) -> _Entries:
        """Return one entry, or none when none came for `block_seconds`."""
        while True:
            try:
                return await self._read(max(1, int(block_seconds * 1000)))
            except redis.ResponseError as error:
                # The group is new, or vanished with its stream.
                if not str(error).startswith("NOGROUP"):
                    raise
            self._own, self._cursor = "0", "0-0"
            try:
                await self._broker.ask(
                    self._broker.redis.xgroup_create, self._stream, self._group, id="0", mkstream=True
                )
            except redis.ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise

    async def _read(self, block: int) -> _Entries:
        if self._own:
            entries = await self._read_group(self._own)
            self._own = entries[-1][0] if entries else ""
            if entries:
                return entries
        self._cursor, claimed, *_ = await self._broker.ask(
            self._broker.redis.xautoclaim,
            self._stream,
            self._group,
            self._name,
            self._claim_after_ms,
            start_id=self._cursor,
            count=1,
        )
        if claimed:
            return [(entry_id.decode(), fields) for entry_id, fields in claimed]
        return await self._read_group(">", block)

    async def _read_group(self, since: str, block: int | None = None) -> _Entries:
        reply = await self._broker.ask(
            self._broker.redis.xreadgroup,
            self._group,
            self._name,
            {self._stream: since},
            count=1,
            block=block,
        )
        return entries_of(reply)


class AsyncClient:
    """A producer and consumer on the broker that the settings name, for one event loop.

    It promises what `worker.client.Client` does. Thousands of tasks may wait at one time: they share one
    reading connection. A broker that cannot be reached, or that refuses, raises `QueueUnreachableError` in
    every method, within `timeout_seconds` of its being asked.
    """

    #: The settings in force, by default those of the DNF_ environment variables.
    settings: Settings

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        timeout_seconds: float = 30.0,
        max_connections: int = 20,
    ) -> None:
        self.settings = settings or Settings()
        self._broker = AsyncBroker(
            self.settings, timeout_seconds=timeout_seconds, max_connections=max_connections
        )
        self._redis = self._broker.redis
        self._positions = Positions()
        self._waiting: set[_Waiting] = set()
        self._waiting_for: defaultdict[str, set[_Waiting]] = defaultdict(set)
        self._reading: asyncio.Task[None] | None = None
        self._storage: Storage | None = None

    async def submit(self, bucket: str, key: str, *, queue: QueueName = DEFAULT_QUEUE, **fields: Any) -> str:
        """Enqueue a check of s3://bucket/key and return its id; `fields` are others of `ImageCheck`.

        Raises pydantic.ValidationError for a malformed check, and what `submit_check` raises.
        """
        return await self.submit_check(ImageCheck(bucket=bucket, key=key, **fields), queue=queue)

    async def submit_check(self, check: ImageCheck, *, queue: QueueName = DEFAULT_QUEUE) -> str:
        """Enqueue a check and return its id. Submitting again under the same id is safe.

        Raises `QueueFullError`, `UnknownQueueError` and `QueueUnreachableError`.
        """
        return (await self.submit_many([check], queue=queue))[0]

    async def submit_many(
        self, checks: Iterable[ImageCheck], *, queue: QueueName = DEFAULT_QUEUE
    ) -> list[str]:
        """Enqueue many checks, some hundred in each command, and return their ids.

        After an error some may be enqueued: submitting all of them again is safe. Raises what `submit_check`
        raises.
        """
        refuse_unknown(queue)
        check_ids: list[str] = []
        for chunk in chunks(checks):
            ids = [check.check_id for check in chunk]
            with tracing.span("submit", **span_attributes(chunk, queue)):
                length, server_time = await self._broker.ask_together([("LLEN", queue), ("TIME",)])
                refuse_full(queue, length=length, adding=len(chunk), limit=self.settings.max_queue_length)
                await self._broker.ask(self._redis.lpush, queue, *entries(chunk, queue))
            self._positions.remember(ids, position_at(server_time))
            check_ids += ids
        return check_ids

    async def submit_file(
        self,
        path: Path,
        *,
        queue: QueueName = DEFAULT_QUEUE,
        metadata: dict[str, JsonValue] | None = None,
    ) -> str:
        """Upload a local file to the upload bucket under its digest, enqueue its check, return the id.

        Raises OSError, `StorageRejectedError`, `StorageUnavailableError` and what `submit_check` raises.
        """
        refuse_unknown(queue)
        key, digest = await asyncio.to_thread(lambda: self.storage.upload(path))
        return await self.submit(
            self.settings.upload_bucket, key, queue=queue, sha256=digest, metadata=metadata or {}
        )

    async def position(self) -> str:
        """Return the stream's newest entry id, for `events(since=...)` and `wait_for(since=...)`."""
        newest = await self._broker.ask(self._redis.xrevrange, self.settings.verdict_stream, count=1)
        return str(newest[0][0].decode()) if newest else BEGINNING

    async def events(self, *, since: str = BEGINNING, follow: bool = True) -> AsyncIterator[Event]:
        """Yield events after `since`, oldest first; without `follow`, end at the newest one."""
        block = self._broker.block_seconds if follow else 0.001
        stream = self.settings.verdict_stream
        while True:
            reply = await self._broker.ask(
                self._redis.xread, {stream: since}, count=100, block=max(1, int(block * 1000))
            )
            for entry_id, fields in entries_of(reply):
                since = entry_id
                if event := parsed_event(entry_id, fields):
                    yield event
            if not reply and not follow:
                return

    async def verdicts(
        self,
        group: str,
        *,
        consumer: str | None = None,
        follow: bool = True,
        claim_after_seconds: float = 60.0,
    ) -> AsyncIterator[AsyncConsumedEvent]:
        """Yield events as a member of a consumer group; each must be acknowledged with `await ack()`.

        `consumer` names the member, by default the host's name: under the same name it continues after a
        crash with the events that it had not acknowledged. Events that another member left pending for
        `claim_after_seconds` are claimed.
        """
        name, stream = consumer or socket.gethostname(), self.settings.verdict_stream
        member = _Member(self._broker, stream, group, name, claim_after_seconds)
        async for event in member.events(read_event, follow=follow):
            yield AsyncConsumedEvent(event, self._broker, stream, group, name)

    async def decisions(
        self,
        group: str,
        *,
        consumer: str | None = None,
        follow: bool = True,
        claim_after_seconds: float = 60.0,
    ) -> AsyncIterator[AsyncConsumedDecision]:
        """Yield people's decisions as a member of a consumer group; everything is as in `verdicts`.

        Of several decisions on one check the one with the highest revision is in force.
        """
        name, stream = consumer or socket.gethostname(), self.settings.decision_stream
        member = _Member(self._broker, stream, group, name, claim_after_seconds)
        async for event in member.events(read_decision, follow=follow):
            yield AsyncConsumedDecision(event, self._broker, stream, group, name)

    async def wait_for(
        self,
        *checks: str | ImageCheck,
        timeout_seconds: float = 60.0,
        since: str | None = None,
        resubmit_after_seconds: float | None = None,
        queue: QueueName = DEFAULT_QUEUE,
    ) -> dict[str, Event]:
        """Return the events of these checks by id, looking at what came after `since`.

        Everything is as in `Client.wait_for`. Raises `NoVerdictError` and `QueueUnreachableError`.
        """
        awaited = Awaited(checks)
        started = time.monotonic()
        ends = started + timeout_seconds
        resubmit_after = resubmit_after_seconds or float("inf")
        waiting = _Waiting(awaited, since or self._positions.before(awaited.open))
        check_ids = frozenset(awaited.open)
        self._waiting.add(waiting)
        for check_id in check_ids:
            self._waiting_for[check_id].add(waiting)
        try:
            while awaited.open:
                self._start_reading()
                remaining = min(ends, started + resubmit_after) - time.monotonic()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(waiting.changed.wait(), max(0.0, remaining))
                waiting.changed.clear()
                now = time.monotonic()
                if waiting.error:
                    raise QueueUnreachableError(str(waiting.error)) from waiting.error
                if awaited.open and (now >= ends or (waiting.caught_up and awaited.settled)):
                    raise await self._failure(awaited)
                if now >= started + resubmit_after:
                    resubmit_after *= 2
                    await self.submit_many(awaited.to_submit_again, queue=queue)
        finally:
            self._waiting.discard(waiting)
            for check_id in check_ids:
                self._waiting_for[check_id].discard(waiting)
                if not self._waiting_for[check_id]:
                    del self._waiting_for[check_id]
        return awaited.found

    async def thumbnail(self, event: Event) -> bytes | None:
        """Return the picture of an event's Diffusion Noise Feature; None when it has none, or no longer.

        Raises `QueueUnreachableError` and `StorageUnavailableError`.
        """
        data = event.envelope.data
        if not isinstance(data, Verdict):
            return None
        if data.thumbnail.uri is None:
            key = keys.thumbnail(self.settings.verdict_stream, event.envelope.id)
            value: bytes | None = await self._broker.ask(self._redis.get, key)
            return value
        bucket, _, key = data.thumbnail.uri.removeprefix("s3://").partition("/")
        return await asyncio.to_thread(lambda: self.storage.read_thumbnail(bucket, key))

    @property
    def storage(self) -> "Storage":
        """The object store, connected at its first use; its calls block."""
        if self._storage is None:
            from worker.storage import Storage

            self._storage = Storage(self.settings.storage)
        return self._storage

    async def aclose(self) -> None:
        """Close the connections."""
        if self._reading:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        await self._broker.close()

    def _start_reading(self) -> None:
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read_for_all())

    async def _read_for_all(self) -> None:
        """Read both streams while somebody waits, from the earliest position that one asks for."""
        reader: StreamReader | None = None
        known: set[_Waiting] = set()
        try:
            while self._waiting:
                new, known = self._waiting - known, set(self._waiting)
                since = min([each.since for each in new], key=ordered, default=None)
                if reader is None or since is not None:
                    reader = self._reader_from(reader, since or BEGINNING)
                block = int(1000 * min(_SHARED_READ_SECONDS, self._broker.block_seconds))
                reply = await self._broker.ask(
                    self._redis.xread, reader.streams, count=ENTRIES, block=max(1, block)
                )
                events, dead_letters, caught_up = reader.parsed(reply)
                self._hand_out(events, dead_letters)
                for each in known:
                    each.caught_up = caught_up
                    if not each.awaited.open or (caught_up and each.awaited.settled):
                        each.changed.set()
        except QueueUnreachableError as error:
            for each in self._waiting:
                each.error = error
                each.changed.set()

    def _hand_out(self, events: list[Event], dead_letters: list[DeadLetter]) -> None:
        for event in events:
            for each in self._waiting_for.get(event.check_id, ()):
                each.awaited.event(event)
        for dead_letter in dead_letters:
            for each in self._waiting_for.get(dead_letter.check_id or "", ()):
                each.awaited.dead_letter(dead_letter)

    def _reader_from(self, reader: StreamReader | None, since: str) -> StreamReader:
        """Return a reader at `since`, or at the positions of `reader` that are before it."""
        names = self.settings.verdict_stream, self.settings.dead_letter_stream
        renewed = StreamReader(*names, since)
        if reader:
            for name in names:
                renewed.streams[name] = min(reader.streams[name], since, key=ordered)
        return renewed

    async def _failure(self, awaited: Awaited) -> NoVerdictError:
        """Return the error of a wait, with what the workers noted of the missing checks."""
        missing = awaited.missing
        replies: list[Any] = []
        with contextlib.suppress(QueueUnreachableError):
            for start in range(0, len(missing), ENTRIES):
                some = missing[start : start + ENTRIES]
                commands = [("HMGET", keys.attempts(check_id), *RETRY_FIELDS) for check_id in some]
                replies += await self._broker.ask_together(commands)
        return awaited.failure(retries_in(missing[: len(replies)], replies))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
