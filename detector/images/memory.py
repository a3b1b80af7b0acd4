"""MemoryBudget: what the pictures that a process decodes at one time may need together."""

import ctypes
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# Part of the budget that only small pictures use, and what is small: eight of them fit into it.
_SMALL_PART, _SMALL_AT_ONCE = 4, 8


# glibc's option for the number of heaps.
_ARENA_MAX = -8


def share_one_heap() -> None:
    """Let all threads that start from now on share one heap, where the C library is glibc.

    It gives threads heaps of their own, up to eight for each core. Pixels that one thread has freed are then
    of no use to the next one, for which the system has to find and to clear pages.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)


def release_freed_memory() -> None:
    """Let the C library return to the system what was freed, where it is glibc.

    It keeps freed blocks of up to 32 MiB in the heap of each thread, so that pixels that were reserved and
    given back would stay with the process.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class MemoryBudgetError(MemoryError):
    """No part of the budget became free in time."""


class MemoryBudget:
    """Bytes that many threads share: whoever finds too few left waits for its turn.

    A quarter is kept for small pictures, which never wait for a large one; large ones share the rest. Within
    each part the first to come is the first served, so nobody waits for ever. A picture that needs more than
    its part has it alone: the most in use is the budget, or a quarter of it and the largest picture.
    """

    def __init__(self, total_bytes: int) -> None:
        small = total_bytes // _SMALL_PART
        self._small = _Part(small)
        self._large = _Part(total_bytes - small)
        self._small_bytes = small // _SMALL_AT_ONCE

    @property
    def waiting(self) -> int:
        """Pictures that wait for their turn."""
        return self._small.waiting + self._large.waiting

    @contextmanager
    def reserve(self, needed_bytes: int, *, timeout_seconds: float) -> Iterator[None]:
        """Reserve bytes for the block. Raises `MemoryBudgetError` when the turn does not come in time."""
        part = self._small if needed_bytes <= self._small_bytes else self._large
        taken = part.take(needed_bytes, timeout_seconds)
        try:
            yield
        finally:
            if part is self._large:
                release_freed_memory()
            part.give_back(taken)


class _Part:
    """A part of the budget, given out in the order of arrival."""

    def __init__(self, total_bytes: int) -> None:
        self._total = self._free = total_bytes
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @property
    def waiting(self) -> int:
        with self._changed:
            return len(self._waiting)

    def take(self, needed_bytes: int, timeout_seconds: float) -> int:
        taken = min(needed_bytes, self._total)
        turn = object()
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            self._waiting.append(turn)
            try:
                if not self._changed.wait_for(
                    lambda: self._waiting[0] is turn and self._free >= taken, deadline - time.monotonic()
                ):
                    raise MemoryBudgetError(
                        f"no {needed_bytes} bytes for a picture in {timeout_seconds:.0f} s"
                    )
                self._free -= taken
            finally:
                self._waiting.remove(turn)
                self._changed.notify_all()
        return taken

    def give_back(self, taken: int) -> None:
        with self._changed:
            self._free += taken
            self._changed.notify_all()
