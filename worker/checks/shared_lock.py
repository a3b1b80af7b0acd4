"""A lock that many share, or one has alone."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class LockTimeoutError(Exception):
    """The lock was not to be had in time, alone or beside others."""


class SharedLock:
    """Many threads may hold it `shared`, or one `alone`; whoever waits to be alone goes before newcomers."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sharing = 0
        self._waiting_alone = 0
        self._alone = False

    @property
    def waiting_alone(self) -> int:
        """How many wait to be alone."""
        return self._waiting_alone

    @contextmanager
    def shared(self, timeout_seconds: float) -> Iterator[None]:
        """Hold the lock beside others. Raises `LockTimeoutError`."""
        with self._changed:
            if not self._changed.wait_for(
                lambda: not self._alone and not self._waiting_alone, timeout_seconds
            ):
                raise LockTimeoutError(f"others were alone for {timeout_seconds} seconds")
            self._sharing += 1
        try:
            yield
        finally:
            with self._changed:
                self._sharing -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self, timeout_seconds: float) -> Iterator[None]:
        """Hold the lock with nobody beside. Raises `LockTimeoutError`."""
        with self._changed:
            self._waiting_alone += 1
            try:
                if not self._changed.wait_for(lambda: not self._alone and not self._sharing, timeout_seconds):
                    raise LockTimeoutError(f"never alone within {timeout_seconds} seconds")
                self._alone = True
            finally:
                self._waiting_alone -= 1
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()
