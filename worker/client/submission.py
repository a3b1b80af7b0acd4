"""Checks as they are enqueued: validated, encoded, in commands of a bounded size, and where they began."""

import difflib
import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from worker.client.errors import QueueFullError, UnknownQueueError
from worker.contract.envelope import encode
from worker.contract.messages import QUEUES, ImageCheck
from worker.telemetry import tracing

#: The streams' beginning.
BEGINNING = "0-0"
# Checks in one command: enough to be quick, few enough not to block the broker.
_CHECKS_PER_COMMAND = 200
# Submissions whose position is remembered: as many checks as a queue holds by default.
_REMEMBERED = 100_000


def chunks(checks: Iterable[ImageCheck]) -> Iterator[list[ImageCheck]]:
    """Yield the checks of one command after the other."""
    remaining = iter(checks)
    while chunk := list(islice(remaining, _CHECKS_PER_COMMAND)):
        yield chunk


def entries(checks: Sequence[ImageCheck], queue: str) -> list[bytes]:
    """Return the queue's entries of these checks, with the current trace."""
    trace = tracing.traceparent()
    return [encode(check.model_dump(mode="json"), queue, traceparent=trace) for check in checks]


def span_attributes(checks: Sequence[ImageCheck], queue: str) -> dict[str, str | float]:
    """Return what the span of a submission says: the check's id, or how many checks there are."""
    checked: dict[str, str | float] = (
        {"dnf.check_id": checks[0].check_id} if len(checks) == 1 else {"dnf.checks": len(checks)}
    )
    return {**checked, "dnf.queue": queue}


def refuse_unknown(queue: str) -> None:
    """Raise `UnknownQueueError` for a queue that no worker takes from."""
    if queue not in QUEUES:
        similar = difflib.get_close_matches(queue, QUEUES, 1)
        hint = f"did you mean {similar[0]}?" if similar else f"the queues are {', '.join(QUEUES)}."
        raise UnknownQueueError(f"There is no queue {queue}: {hint}")


def refuse_full(queue: str, *, length: int, adding: int, limit: int) -> None:
    """Raise `QueueFullError` when a queue of this length has no room for so many checks."""
    if length + adding > limit:
        raise QueueFullError(f"{length} checks wait in {queue}; the limit is {limit}")


def position_at(server_time: tuple[int, int]) -> str:
    """Return the position on both streams before everything that follows this time of the server's clock."""
    seconds, microseconds = server_time
    return f"{seconds * 1000 + microseconds // 1000 - 1}-0"


class Positions:
    """Where the newest submissions of a client began on the streams; safe for threads."""

    def __init__(self) -> None:
        self._positions: dict[str, str] = {}
        self._lock = threading.Lock()

    def remember(self, check_ids: Iterable[str], position: str) -> None:
        """Keep the position of a submission, and forget the oldest ones."""
        with self._lock:
            for check_id in check_ids:
                self._positions.pop(check_id, None)
                self._positions[check_id] = position
            for check_id in list(islice(self._positions, max(0, len(self._positions) - _REMEMBERED))):
                del self._positions[check_id]

    def before(self, check_ids: Iterable[str]) -> str:
        """Return a position before the events of these checks: the beginning for one of another client."""
        positions = [self._positions.get(check_id, BEGINNING) for check_id in check_ids]
        return min(positions, key=ordered, default=BEGINNING)


def ordered(position: str) -> tuple[int, int]:
    """Return the two numbers of a stream's position, by which positions are ordered."""
    time, _, number = position.partition("-")
    return int(time), int(number or 0)
