"""For platforms in Python: submit checks, consume events. Neither torch nor the detector's weights are loaded."""

import socket
import time
from collections.abc import Collection, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kombu.exceptions import OperationalError
from pydantic import JsonValue

from worker.app import DEFAULT_QUEUE, create_app
from worker.messages import CHECK_IMAGE, ImageCheck, QueueName
from worker.results import Event, Results
from worker.settings import Settings
from worker.storage import Storage


class QueueUnreachable(ConnectionError):  # noqa: N818 - a state
    """The broker cannot be reached; nothing was enqueued."""


class NoVerdictInTime(TimeoutError):  # noqa: N818 - a state
    """No event came for the awaited checks within the time; `missing` holds their ids."""

    def __init__(self, missing: Collection[str], seconds: float) -> None:
        super().__init__(f"no verdict within {seconds:.0f} seconds for {len(missing)} checks")
        self.missing = frozenset(missing)


@dataclass(frozen=True)
class Delivered:
    """An event that a group's member received: `event`, and `ack()` once it was dealt with."""

    event: Event
    _results: Results
    _group: str

    def ack(self) -> None:
        """Tell the group that the event was dealt with; until then another member may claim it."""
        self._results.acknowledge(self._group, self.event)


class Client:
    """A producer and consumer on the broker that the settings name."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self._app = create_app(self.settings)
        self._results = Results(self.settings)
        self._storage: Storage | None = None

    def submit(
        self, bucket: str, key: str, *, queue: QueueName = DEFAULT_QUEUE, **fields: Any
    ) -> str:
        """Enqueue a check of s3://bucket/key and return its id; `fields` are others of `ImageCheck`.

        Raises pydantic.ValidationError for a malformed check and `QueueUnreachable`.
        """
        return self.submit_check(ImageCheck(bucket=bucket, key=key, **fields), queue=queue)

    def submit_check(self, check: ImageCheck, *, queue: QueueName = DEFAULT_QUEUE) -> str:
        """Enqueue a check and return its id. Submitting again under the same id is safe."""
        message = check.model_dump(mode="json")
        try:
            self._app.send_task(CHECK_IMAGE, args=[message], queue=queue, retry_policy={"max_retries": 3})
        except OperationalError as error:
            raise QueueUnreachable(f"the broker cannot be reached: {error}") from error
        return check.check_id

    def submit_file(
        self,
        path: Path,
        *,
        queue: QueueName = DEFAULT_QUEUE,
        metadata: dict[str, JsonValue] | None = None,
    ) -> str:
        """Upload a local file to the upload bucket under its digest, enqueue its check, return the id."""
        self._storage = self._storage or Storage(self.settings)
        key, digest = self._storage.upload(path)
        return self.submit(
            self.settings.upload_bucket, key, queue=queue, sha256=digest, metadata=metadata or {}
        )

    def position(self) -> str:
        """Return the stream's newest entry id, for `events(since=...)` and `wait_for(since=...)`."""
        return self._results.position()

    def events(self, *, since: str = "0-0", follow: bool = True) -> Iterator[Event]:
        """Yield events after `since`, oldest first; without `follow`, end at the newest one."""
        for event in self._results.tail(since, block_seconds=1.0 if follow else 0.001):
            if event is not None:
                yield event
            elif not follow:
                return

    def verdicts(
        self, group: str, *, consumer: str | None = None, follow: bool = True
    ) -> Iterator[Delivered]:
        """Yield events as a member of a consumer group; each must be acknowledged with `ack()`."""
        member = consumer or socket.gethostname()
        for event in self._results.consume(group, member, block_seconds=1.0 if follow else 0.001):
            if event is not None:
                yield Delivered(event, self._results, group)
            elif not follow:
                return

    def wait_for(
        self, *check_ids: str, timeout_seconds: float = 60.0, since: str = "0-0"
    ) -> dict[str, Event]:
        """Return the events of these checks by id. Raises `NoVerdictInTime`."""
        deadline = time.monotonic() + timeout_seconds
        found: dict[str, Event] = {}
        with closing(self._results.tail(since, block_seconds=0.2)) as tail:
            for event in tail:
                if event is not None and event.check_id in check_ids:
                    found[event.check_id] = event
                if len(found) == len(set(check_ids)):
                    return found
                if time.monotonic() > deadline:
                    raise NoVerdictInTime(set(check_ids) - found.keys(), timeout_seconds)
        raise AssertionError("unreachable: the tail is endless")

    def close(self) -> None:
        """Close the connections."""
        self._results.close()
        self._app.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
