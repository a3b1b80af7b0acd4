"""Turns: small pictures are prepared one after the other, large ones side by side.

Python runs one thread at a time. Small pictures side by side mostly hand its lock back and forth, which costs
more than a second core gains; the decoder of a large one runs for long without the lock.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from detector.images.memory import MemoryBudgetError

#: The most pixels of a small picture.
SMALL_PIXELS = 1 << 20


class Turns:
    """The turns of one process; safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def turn(self, pixel_count: int, *, timeout_seconds: float) -> Iterator[None]:
        """Run the block, for a small picture beside no other small one.

        A turn is long only where its picture waits for memory. Raises `MemoryBudgetError` when the next does
        not come in time.
        """
        if pixel_count > SMALL_PIXELS:
            yield
            return
        if not self._lock.acquire(timeout=timeout_seconds):
            raise MemoryBudgetError(f"another picture waits for memory since {timeout_seconds:.0f} s")
        try:
            yield
        finally:
            self._lock.release()
