"""Durations by stage of one check."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from worker.telemetry import tracing


class Stopwatch:
    """Collects the milliseconds of each stage, and of everything since it was made."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._stages: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block as one stage, and as a span of the trace, also when it raises."""
        began = time.perf_counter()
        try:
            with tracing.span(name):
                yield
        finally:
            self.add(name, (time.perf_counter() - began) * 1000)

    def add(self, name: str, milliseconds: float) -> None:
        """Add a stage that was measured elsewhere."""
        self._stages[name] = round(milliseconds, 2)

    def add_in_turn(self, **milliseconds: float) -> None:
        """Add stages that were measured elsewhere and followed each other up to now, as spans too."""
        tracing.record(milliseconds)
        for name, each in milliseconds.items():
            self.add(name, each)

    def add_queue_wait(self, submitted_at: datetime) -> None:
        """Add the time since the producer's clock said `submitted_at`; skewed clocks count as no wait."""
        self.add("queue_wait", max(0.0, (datetime.now(UTC) - submitted_at).total_seconds() * 1000))

    def read(self) -> dict[str, float]:
        """Return the stages so far and `total`, the milliseconds since the watch was made."""
        return self._stages | {"total": round((time.perf_counter() - self._began) * 1000, 2)}
