"""MemoryBudget: what the pictures that a process decodes at one time may need together."""

import ctypes
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# Part of the budget that only small pictures use, and what is small: eight of them fit into it.
_SMALL_PART, _SMALL_AT_ONCE = 4, 8


# glibc's options: the number of heaps, the bytes from which a block is a mapping of its own (32 MiB is the
# most), and those at the end of the heap that stay with the process when they are free.
_ARENA_MAX, _MMAP_THRESHOLD, _TRIM_THRESHOLD = -8, -3, -1
_MMAP_BYTES, _TRIM_BYTES = 32 << 20, 64 << 20


def share_one_heap() -> None:
    """Let all threads that start from now on share one heap, which keeps pixels for the next picture.

    glibc gives threads heaps of their own, up to eight for each core, and soon returns large blocks to the
    system, which has to find and to clear their pages again. Other C libraries are left as they are.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_ARENA_MAX, 1)
        mallopt(_MMAP_THRESHOLD, _MMAP_BYTES)
        mallopt(_TRIM_THRESHOLD, _TRIM_BYTES)


def release_freed_memory() -> None:
    """Let the C library return to the system what was freed, where it is glibc.

    Pixels that were reserved and given back would stay with the process.
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
            # While others use the part, they take what was freed.
            if part.give_back(taken) and part is self._large:
                release_freed_memory()


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

    def give_back(self, taken: int) -> bool:
        """Return whether nobody uses the part any more."""
        with self._changed:
            self._free += taken
            self._changed.notify_all()
            return self._free == self._total and not self._waiting
