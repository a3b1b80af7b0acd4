"""Durations by stage of one check."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from worker.telemetry import tracing


class Timings:
    """The milliseconds of each stage of a check, and of the whole since this was made."""

    def __init__(self, submitted_at: datetime) -> None:
        self._started = time.perf_counter()
        self._stages: dict[str, float] = {}
        # Skewed clocks count as no wait.
        waited = (datetime.now(UTC) - submitted_at).total_seconds()
        self._add("queue_wait", max(0.0, waited * 1000))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block as one stage, and as a span of the trace, also when it raises."""
        started = time.perf_counter()
        try:
            with tracing.span(name):
                yield
        finally:
            self._add(name, (time.perf_counter() - started) * 1000)

    def _add(self, name: str, milliseconds: float) -> None:
        self._stages[name] = round(milliseconds, 2)

    def add_consecutive(self, **milliseconds: float) -> None:
        """Add stages that were measured elsewhere, one after another up to now, as spans too."""
        tracing.record(milliseconds)
        for name, each in milliseconds.items():
            self._add(name, each)

    def read(self) -> dict[str, float]:
        """Return the stages so far and `total`, the milliseconds since this was made."""
        return self._stages | {"total": round((time.perf_counter() - self._started) * 1000, 2)}
