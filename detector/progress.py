"""Where a long run is, as log events: a pipe or a file gets them like a terminal."""

import time
from typing import Any

import structlog

log = structlog.get_logger(__name__)

#: Seconds between two reports. Steps of a slow network come on top, and a report every minute is promised.
REPORT_SECONDS = 30.0


class Pace:
    """Says when a report is due: `seconds` after the last one."""

    def __init__(self, seconds: float = REPORT_SECONDS) -> None:
        self._seconds, self._last = seconds, time.monotonic()

    def due(self) -> bool:
        """Return whether a report is due; if so, the next one is due `seconds` from now."""
        now = time.monotonic()
        if now - self._last < self._seconds:
            return False
        self._last = now
        return True


class Progress:
    """Counts what is done of a known total, and logs `event` whenever a report is due.

    The event has `done`, `total`, `per_second`, `remaining_minutes` and the given `fields`. What was `done`
    before this run does not count for the rate.
    """

    def __init__(
        self, event: str, total: int, *, done: int = 0, seconds: float = REPORT_SECONDS, **fields: Any
    ) -> None:
        self._event, self._total, self._fields = event, total, fields
        self._first = self._done = done
        self._pace, self._began = Pace(seconds), time.monotonic()

    def advance(self, count: int = 1) -> None:
        """Add `count` to what is done."""
        self._done += count
        if self._pace.due():
            rate = (self._done - self._first) / max(time.monotonic() - self._began, 1e-9)
            log.info(
                self._event,
                done=self._done,
                total=self._total,
                per_second=round(rate, 2),
                remaining_minutes=round((self._total - self._done) / max(rate, 1e-9) / 60, 1),
                **self._fields,
            )
