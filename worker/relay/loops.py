"""Threads that repeat one thing each, whatever fails around them."""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import redis

from worker.contract.messages import UnavailableError
from worker.telemetry.logs import get_logger
from worker.telemetry.relay_metrics import RELAY_FAILURES

log = get_logger(__name__)

_LONGEST_BACK_OFF_SECONDS = 5.0

#: One round of a loop; returns the seconds until the next one.
Turn = Callable[[], float]


class Loop:
    """Calls `turn` again and again on a thread of its own while the `with` block runs.

    A broker or a database that is away is logged when it goes and when it is back. Any other error is logged
    with its traceback. After both the next turn follows within five seconds; `failed` is called first.
    """

    def __init__(self, name: str, turn: Turn, *, failed: Callable[[], None] = lambda: None) -> None:
        self.name = name
        #: Why the newest turn failed; None after one that succeeded.
        self.fault: str | None = None
        self._turn = turn
        self._failed = failed
        self._began = time.monotonic()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def seconds_in_turn(self) -> float:
        """For how long the present turn has lasted, or the pause before the next."""
        return time.monotonic() - self._began

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        failures = 0
        while not self._ending.is_set():
            self._began = time.monotonic()
            try:
                pause = self._turn()
            except (UnavailableError, redis.RedisError) as error:
                self._note("unavailable", f"{type(error).__name__}: {error}"[:300])
                failures += 1
            except Exception:
                log.exception("relay_turn_failed", loop=self.name)
                self._note("internal_error", "internal error")
                failures += 1
            else:
                if self.fault:
                    log.info("relay_recovered", loop=self.name)
                self.fault = None
                failures = 0
            if failures:
                pause = min(_LONGEST_BACK_OFF_SECONDS, 0.1 * 2 ** min(failures, 10))
                self._failed()
            self._began = time.monotonic()
            self._ending.wait(pause)

    def _note(self, reason: str, fault: str) -> None:
        RELAY_FAILURES.labels(self.name, reason).inc()
        if self.fault is None:
            log.warning("relay_interrupted", loop=self.name, error=fault)
        self.fault = fault

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join(10)
