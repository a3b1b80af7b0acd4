"""Durations by stage of one check."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime


class Stopwatch:
    """Collects the milliseconds of each stage, and of everything since it was made."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._stages: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block as one stage, also when it raises."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, (time.perf_counter() - began) * 1000)

    def add(self, name: str, milliseconds: float) -> None:
        """Add a stage that was measured elsewhere."""
        self._stages[name] = round(milliseconds, 2)

    def add_queue_wait(self, submitted_at: datetime) -> None:
        """Add the time since the producer's clock said `submitted_at`; skewed clocks count as no wait."""
        self.add("queue_wait", max(0.0, (datetime.now(UTC) - submitted_at).total_seconds() * 1000))

    def read(self) -> dict[str, float]:
        """Return the stages so far and `total`, the milliseconds since the watch was made."""
        return self._stages | {"total": round((time.perf_counter() - self._began) * 1000, 2)}
