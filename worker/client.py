"""For platforms in Python: submit checks and consume events, without torch and without a model."""

import socket
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from kombu.exceptions import OperationalError
from pydantic import JsonValue

from worker.broker.app import DEFAULT_QUEUE, create_app
from worker.broker.connection import connect
from worker.broker.dead_letters import DeadLetters
from worker.broker.faults import connection_fault
from worker.broker.verdict_stream import Event, VerdictStream
from worker.contract.envelope import encode
from worker.contract.messages import CHECK_IMAGE, DeadLetter, ImageCheck, QueueName, Verdict
from worker.settings import Settings
from worker.storage import Storage
from worker.telemetry import tracing

# Checks in one command: enough to be quick, few enough not to block the broker.
_CHECKS_PER_COMMAND = 200


class QueueUnreachableError(ConnectionError):
    """The broker cannot be reached; nothing was enqueued."""


class QueueFullError(Exception):
    """The queue holds as many checks as it may; nothing was enqueued."""


class NoVerdictError(Exception):
    """Some awaited checks have no event."""

    #: Events of the others, by check id.
    found: Mapping[str, Event]
    #: Dead letters, by check id.
    dead_letters: Mapping[str, DeadLetter]
    #: Check ids that had neither in time.
    missing: frozenset[str]

    def __init__(
        self, found: Mapping[str, Event], dead_letters: Mapping[str, DeadLetter], missing: Collection[str]
    ) -> None:
        parts = [
            f"{check_id}: {dead_letter.reason} ({dead_letter.detail})"
            for check_id, dead_letter in dead_letters.items()
        ]
        parts += [f"{check_id}: no verdict in time" for check_id in missing]
        super().__init__("; ".join(parts))
        self.found = found
        self.dead_letters = dead_letters
        self.missing = frozenset(missing)


@dataclass(frozen=True)
class ConsumedEvent:
    """An event that a member of a consumer group received."""

    event: Event
    _stream: VerdictStream
    _group: str

    def ack(self) -> None:
        """Acknowledge the event; until then another member of the group may claim it."""
        self._stream.acknowledge(self._group, self.event)


class Client:
    """A producer and consumer on the broker that the settings name."""

    #: The settings in force, by default those of the DNF_ environment variables.
    settings: Settings

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self._app = create_app(self.settings)
        self._verdict_stream = VerdictStream.connect(self.settings)
        self._dead_letters = DeadLetters.connect(self.settings)
        self._redis = connect(self.settings.broker)
        self._storage: Storage | None = None

    def submit(self, bucket: str, key: str, *, queue: QueueName = DEFAULT_QUEUE, **fields: Any) -> str:
        """Enqueue a check of s3://bucket/key and return its id; `fields` are others of `ImageCheck`.

        Raises pydantic.ValidationError for a malformed check and `QueueUnreachableError`.
        """
        return self.submit_check(ImageCheck(bucket=bucket, key=key, **fields), queue=queue)

    def submit_check(self, check: ImageCheck, *, queue: QueueName = DEFAULT_QUEUE) -> str:
        """Enqueue a check and return its id. Submitting again under the same id is safe.

        Raises `QueueFullError` and `QueueUnreachableError`.
        """
        self._refuse_if_full(queue)
        message = check.model_dump(mode="json")
        try:
            with tracing.span("submit", **{"dnf.check_id": check.check_id, "dnf.queue": queue}):
                trace = tracing.traceparent()
                self._app.send_task(
                    CHECK_IMAGE,
                    args=[message],
                    queue=queue,
                    headers={"traceparent": trace} if trace else None,
                    retry_policy={"max_retries": 3},
                )
        except OperationalError as error:
            raise self._unreachable(error) from error
        return check.check_id

    def submit_many(self, checks: Iterable[ImageCheck], *, queue: QueueName = DEFAULT_QUEUE) -> list[str]:
        """Enqueue many checks, some hundred in each command, and return their ids.

        After an error some may be enqueued: submitting all of them again is safe. Raises `QueueFullError` and
        `QueueUnreachableError`.
        """
        check_ids: list[str] = []
        remaining = iter(checks)
        while chunk := list(islice(remaining, _CHECKS_PER_COMMAND)):
            self._refuse_if_full(queue, adding=len(chunk))
            try:
                with tracing.span("submit", **{"dnf.checks": len(chunk), "dnf.queue": queue}):
                    trace = tracing.traceparent()
                    messages = [check.model_dump(mode="json") for check in chunk]
                    self._redis.lpush(queue, *(encode(each, queue, traceparent=trace) for each in messages))
            except redis.RedisError as error:
                raise self._unreachable(error) from error
            check_ids += [check.check_id for check in chunk]
        return check_ids

    def submit_file(
        self,
        path: Path,
        *,
        queue: QueueName = DEFAULT_QUEUE,
        metadata: dict[str, JsonValue] | None = None,
    ) -> str:
        """Upload a local file to the upload bucket under its digest, enqueue its check, return the id."""
        self._storage = self._storage or Storage(self.settings.storage)
        key, digest = self._storage.upload(path)
        return self.submit(
            self.settings.upload_bucket, key, queue=queue, sha256=digest, metadata=metadata or {}
        )

    def position(self) -> str:
        """Return the stream's newest entry id, for `events(since=...)` and `wait_for(since=...)`."""
        return self._verdict_stream.position()

    def events(self, *, since: str = "0-0", follow: bool = True) -> Iterator[Event]:
        """Yield events after `since`, oldest first; without `follow`, end at the newest one."""
        for event in self._verdict_stream.tail(since, block_seconds=1.0 if follow else 0.001):
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
        member = consumer or socket.gethostname()
        wait = 1.0 if follow else 0.001
        for event in self._verdict_stream.consume(
            group, member, block_seconds=wait, claim_after_seconds=claim_after_seconds
        ):
            if event is not None:
                yield ConsumedEvent(event, self._verdict_stream, group)
            elif not follow:
                return

    def wait_for(
        self,
        *checks: str | ImageCheck,
        timeout_seconds: float = 60.0,
        since: str = "0-0",
        resubmit_after_seconds: float | None = None,
        queue: QueueName = DEFAULT_QUEUE,
    ) -> dict[str, Event]:
        """Return the events of these checks by id, looking at what came after `since`.

        A check is an id or an `ImageCheck`. The latter is submitted again, to `queue`, when it has no event
        after `resubmit_after_seconds`, and again after twice that time, and so on: a broker that lost a
        confirmed message, in a power failure say, then costs time and no verdict. Raises `NoVerdictError`
        after the timeout, or when every check without an event has a dead letter.
        """
        started = time.monotonic()
        deadline = started + timeout_seconds
        whole = {check.check_id: check for check in checks if isinstance(check, ImageCheck)}
        resubmit_after = resubmit_after_seconds or float("inf")
        awaited = {check if isinstance(check, str) else check.check_id for check in checks}
        found: dict[str, Event] = {}
        dead_letters: dict[str, DeadLetter] = {}
        # The ids of both streams come from one server's clock.
        read = since
        with closing(self._verdict_stream.tail(since, block_seconds=0.2)) as tail:
            for event in tail:
                if event is not None:
                    if event.check_id in awaited:
                        found[event.check_id] = event
                else:
                    for stored in self._dead_letters.read(read):
                        read = stored.entry_id
                        if stored.dead_letter and stored.dead_letter.check_id in awaited:
                            dead_letters[str(stored.dead_letter.check_id)] = stored.dead_letter
                dead = {
                    check_id: dead_letter
                    for check_id, dead_letter in dead_letters.items()
                    if check_id not in found
                }
                missing = awaited - found.keys() - dead.keys()
                if not missing and not dead:
                    return found
                if not missing or time.monotonic() > deadline:
                    raise NoVerdictError(found, dead, missing)
                if event is None and time.monotonic() > started + resubmit_after:
                    resubmit_after *= 2
                    self.submit_many([whole[check_id] for check_id in missing & whole.keys()], queue=queue)
        raise AssertionError("unreachable: the tail is endless")

    def thumbnail(self, event: Event) -> bytes | None:
        """Return the picture of an event's Diffusion Noise Feature; None when it has none, or no longer.

        Raises redis.RedisError and `StorageUnavailableError`.
        """
        data = event.envelope.data
        if not isinstance(data, Verdict):
            return None
        if data.thumbnail.uri is None:
            return self._verdict_stream.thumbnail(event)
        bucket, _, key = data.thumbnail.uri.removeprefix("s3://").partition("/")
        self._storage = self._storage or Storage(self.settings.storage)
        return self._storage.read_thumbnail(bucket, key)

    def _refuse_if_full(self, queue: QueueName, *, adding: int = 1) -> None:
        most = self.settings.max_queue_length
        try:
            length = int(self._redis.llen(queue))
        except redis.RedisError as error:
            raise self._unreachable(error) from error
        if length + adding > most:
            raise QueueFullError(f"{length} checks wait in {queue}; the limit is {most}")

    def _unreachable(self, error: Exception) -> QueueUnreachableError:
        return QueueUnreachableError(
            str(connection_fault(error, self.settings.broker) or f"the broker cannot be reached: {error}")
        )

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()
        self._verdict_stream.close()
        self._dead_letters.close()
        self._app.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
