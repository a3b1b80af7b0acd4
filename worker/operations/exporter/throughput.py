"""How fast the fleet is: what it was seen to do, or what may be expected of it."""

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

#: The rate is measured over so many seconds.
WINDOW_SECONDS = 60.0


class _Moment(NamedTuple):
    at: float
    published: int
    alive: int
    waiting: int


@dataclass
class Throughput:
    """The fleet's checks a second, measured over `WINDOW_SECONDS` while the same number of workers lives."""

    _seen: deque[_Moment] = field(default_factory=deque)

    def note(self, at: float, *, published: int, alive: int, waiting: int) -> None:
        """Remember a moment: seconds, events published ever, workers alive, checks waiting.

        A fleet of another size, or a stream that began anew, is measured anew.
        """
        if self._seen and (self._seen[-1].alive != alive or self._seen[-1].published > published):
            self._seen.clear()
        self._seen.append(_Moment(at, published, alive, waiting))
        while len(self._seen) > 1 and at - self._seen[1].at >= WINDOW_SECONDS:
            self._seen.popleft()

    @property
    def measured(self) -> float | None:
        """Events published a second; None before the second moment."""
        if not self._seen:
            return None
        first, last = self._seen[0], self._seen[-1]
        return (last.published - first.published) / (last.at - first.at) if last.at > first.at else None

    def attainable(self, expected_each: float) -> float:
        """Return what the fleet can do, in checks a second.

        While checks waited at every moment and events came, it is the measured rate. Otherwise that is only
        what arrived, or nothing is known yet: then it is at least `expected_each` of each living worker, or
        of the first one to come.
        """
        measured = self.measured or 0.0
        if measured > 0 and all(moment.waiting for moment in self._seen):
            return measured
        alive = self._seen[-1].alive if self._seen else 0
        return max(measured, expected_each * max(1, alive))
