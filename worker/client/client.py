"""The client that blocks; safe for threads."""

import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self

import redis
from pydantic import JsonValue

from worker.broker import keys
from worker.broker.connection import connect
from worker.broker.decision_stream import DecisionStream
from worker.broker.event_stream import Envelope, EventStream, StreamEvent
from worker.broker.verdict_stream import Event, VerdictStream
from worker.checks.attempts import RETRY_FIELDS
from worker.client.awaited import ENTRIES, Awaited, StreamReader, retries_in
from worker.client.errors import NoVerdictError, Retry, unreachable
from worker.client.submission import (
    BEGINNING,
    Positions,
    chunks,
    entries,
    position_at,
    refuse_full,
    refuse_unknown,
    span_attributes,
)
from worker.contract.messages import (
    DEFAULT_QUEUE,
    DecisionEvent,
    ImageCheck,
    QueueName,
    RejectionEvent,
    Verdict,
    VerdictEvent,
)
from worker.settings import Settings
from worker.telemetry import tracing

if TYPE_CHECKING:
    from worker.storage import Storage


@dataclass(frozen=True)
class _Consumed(Generic[Envelope]):
    event: StreamEvent[Envelope]
    _client: "Client"
    _stream: EventStream[Envelope]
    _group: str
    _consumer: str

    def ack(self) -> None:
        """Acknowledge the event; until then another member of the group may claim it."""
        with self._client._reached():  # noqa: SLF001 - it is a part of the client
            self._stream.acknowledge(self._group, self.event)

    def renew(self) -> None:
        """Start the time after which another member may claim the event anew: for long work."""
        with self._client._reached():  # noqa: SLF001 - the same
            self._stream.renew(self._group, self._consumer, self.event)


class ConsumedEvent(_Consumed[VerdictEvent | RejectionEvent]):
    """An event that a member of a consumer group received."""


class ConsumedDecision(_Consumed[DecisionEvent]):
    """A person's decision that a member of a consumer group received."""


class Client:
    """A producer and consumer on the broker that the settings name.

    A broker that cannot be reached, or that refuses, raises `QueueUnreachableError` in every method, within
    `timeout_seconds` of its being asked.
    """

    #: The settings in force, by default those of the DNF_ environment variables.
    settings: Settings

    def __init__(self, settings: Settings | None = None, *, timeout_seconds: float = 30.0) -> None:
        self.settings = settings or Settings()
        # Three quarters for the answer, the last one to find out why there is none.
        self._diagnosis_seconds = timeout_seconds / 4
        self._redis = connect(self.settings.broker, within_seconds=timeout_seconds * 3 / 4)
        # A read that waits for events ends well before the socket's limit, which is a quarter of that.
        self._block_seconds = min(1.0, timeout_seconds / 8)
        self._verdict_stream = VerdictStream.connect(self.settings, client=self._redis)
        self._decision_stream = DecisionStream.connect(self.settings, client=self._redis)
        self._positions = Positions()
        self._storage: Storage | None = None

    def submit(self, bucket: str, key: str, *, queue: QueueName = DEFAULT_QUEUE, **fields: Any) -> str:
        """Enqueue a check of s3://bucket/key and return its id; `fields` are others of `ImageCheck`.

        Raises pydantic.ValidationError for a malformed check, and what `submit_check` raises.
        """
        return self.submit_check(ImageCheck(bucket=bucket, key=key, **fields), queue=queue)

    def submit_check(self, check: ImageCheck, *, queue: QueueName = DEFAULT_QUEUE) -> str:
        """Enqueue a check and return its id. Submitting again under the same id is safe.

        Raises `QueueFullError`, `UnknownQueueError` and `QueueUnreachableError`.
        """
        return self.submit_many([check], queue=queue)[0]

    def submit_many(self, checks: Iterable[ImageCheck], *, queue: QueueName = DEFAULT_QUEUE) -> list[str]:
        """Enqueue many checks, some hundred in each command, and return their ids.

        After an error some may be enqueued: submitting all of them again is safe. Raises what `submit_check`
        raises.
        """
        refuse_unknown(queue)
        check_ids: list[str] = []
        for chunk in chunks(checks):
            ids = [check.check_id for check in chunk]
            with self._reached(), tracing.span("submit", **span_attributes(chunk, queue)):
                with self._redis.pipeline(transaction=False) as pipeline:
                    pipeline.llen(queue)
                    pipeline.time()
                    length, server_time = pipeline.execute()
                refuse_full(queue, length=length, adding=len(chunk), limit=self.settings.max_queue_length)
                self._redis.lpush(queue, *entries(chunk, queue))
            self._positions.remember(ids, position_at(server_time))
            check_ids += ids
        return check_ids

    def submit_file(
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
        key, digest = self.storage.upload(path)
        return self.submit(
            self.settings.upload_bucket, key, queue=queue, sha256=digest, metadata=metadata or {}
        )

    def position(self) -> str:
        """Return the stream's newest entry id, for `events(since=...)` and `wait_for(since=...)`."""
        with self._reached():
            return self._verdict_stream.position()

    def events(self, *, since: str = BEGINNING, follow: bool = True) -> Iterator[Event]:
        """Yield events after `since`, oldest first; without `follow`, end at the newest one."""
        with self._reached():
            block = self._block_seconds if follow else 0.001
            for event in self._verdict_stream.tail(since, block_seconds=block):
                if event is not None:
                    yield event
                elif not follow:
                    return

    def verdicts(
        self,
        group: str,
        *,
        consumer: str | None = None,
        follow: bool = True,
        claim_after_seconds: float = 60.0,
    ) -> Iterator[ConsumedEvent]:
        """Yield events as a member of a consumer group; each must be acknowledged with `ack()`.

        `consumer` names the member, by default the host's name: under the same name it continues after a
        crash with the events that it had not acknowledged. Events that another member left pending for
        `claim_after_seconds` are claimed.
        """
        member, stream = consumer or socket.gethostname(), self._verdict_stream
        for event in self._consume(stream, group, member, follow=follow, claim_after=claim_after_seconds):
            yield ConsumedEvent(event, self, stream, group, member)

    def decisions(
        self,
        group: str,
        *,
        consumer: str | None = None,
        follow: bool = True,
        claim_after_seconds: float = 60.0,
    ) -> Iterator[ConsumedDecision]:
        """Yield people's decisions as a member of a consumer group; everything is as in `verdicts`.

        Of several decisions on one check the one with the highest revision is in force.
        """
        member, stream = consumer or socket.gethostname(), self._decision_stream
        for event in self._consume(stream, group, member, follow=follow, claim_after=claim_after_seconds):
            yield ConsumedDecision(event, self, stream, group, member)

    def wait_for(
        self,
        *checks: str | ImageCheck,
        timeout_seconds: float = 60.0,
        since: str | None = None,
        resubmit_after_seconds: float | None = None,
        queue: QueueName = DEFAULT_QUEUE,
    ) -> dict[str, Event]:
        """Return the events of these checks by id, looking at what came after `since`.

        By default that is the position at which this client submitted the first of them; a check that another
        client submitted is looked for from the stream's beginning.

        A check is an id or an `ImageCheck`. The latter is submitted again, to `queue`, when it has no event
        after `resubmit_after_seconds`, and again after twice that time, and so on: a broker that lost a
        confirmed message, in a power failure say, then costs time and no verdict. Raises `NoVerdictError`
        after the timeout, or when every check without an event has a dead letter.
        """
        awaited = Awaited(checks)
        started = time.monotonic()
        ends = started + timeout_seconds
        resubmit_after = resubmit_after_seconds or float("inf")
        reader = StreamReader(
            self.settings.verdict_stream,
            self.settings.dead_letter_stream,
            since or self._positions.before(awaited.open),
        )
        while awaited.open:
            now = time.monotonic()
            remaining = max(0.001, min(ends, started + resubmit_after) - now)
            with self._reached():
                reply = self._redis.xread(
                    reader.streams,  # type: ignore[arg-type]
                    count=ENTRIES,
                    block=max(1, int(1000 * min(self._block_seconds, remaining))),
                )
            events, dead_letters, caught_up = reader.parsed(reply)
            for event in events:
                awaited.event(event)
            for dead_letter in dead_letters:
                awaited.dead_letter(dead_letter)
            if awaited.open and (now >= ends or (caught_up and awaited.settled)):
                raise self._failure(awaited)
            if now >= started + resubmit_after:
                resubmit_after *= 2
                self.submit_many(awaited.to_submit_again, queue=queue)
        return awaited.found

    def thumbnail(self, event: Event) -> bytes | None:
        """Return the picture of an event's Diffusion Noise Feature; None when it has none, or no longer.

        Raises `QueueUnreachableError` and `StorageUnavailableError`.
        """
        data = event.envelope.data
        if not isinstance(data, Verdict):
            return None
        if data.thumbnail.uri is None:
            with self._reached():
                return self._verdict_stream.thumbnail(event)
        bucket, _, key = data.thumbnail.uri.removeprefix("s3://").partition("/")
        return self.storage.read_thumbnail(bucket, key)

    @property
    def storage(self) -> "Storage":
        """The object store, connected at its first use."""
        if self._storage is None:
            from worker.storage import Storage

            self._storage = Storage(self.settings.storage)
        return self._storage

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def _consume(
        self, stream: EventStream[Envelope], group: str, member: str, *, follow: bool, claim_after: float
    ) -> Iterator[StreamEvent[Envelope]]:
        with self._reached():
            for event in stream.consume(
                group,
                member,
                block_seconds=self._block_seconds if follow else 0.001,
                claim_after_seconds=claim_after,
            ):
                if event is not None:
                    yield event
                elif not follow:
                    return

    def _failure(self, awaited: Awaited) -> NoVerdictError:
        """Return the error of a wait, with what the workers noted of the missing checks."""
        retries: dict[str, Retry] = {}
        missing = awaited.missing
        with suppress(redis.RedisError):  # the error tells more than that nothing is known of the retries
            for start in range(0, len(missing), ENTRIES):
                some = missing[start : start + ENTRIES]
                pipeline = self._redis.pipeline(transaction=False)
                for check_id in some:
                    pipeline.hmget(keys.attempts(check_id), RETRY_FIELDS)
                retries |= retries_in(some, pipeline.execute())
        return awaited.failure(retries)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except redis.RedisError as error:
            raise unreachable(error, self.settings.broker, seconds=self._diagnosis_seconds) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
