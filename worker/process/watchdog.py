"""The watchdog ends the process when the model makes no progress.

Celery's time limits do nothing in threads, and a single thread that hangs in native code cannot be ended.
With a limit below the deadline of a check (by default 60 of 90 seconds) the attempts of the batch count as
lost, its checks are delivered again, each isolated, and the one at fault is dead-lettered after
`max_attempts`. The limit must be well above the slowest honest batch: 16 pictures take the default detector
about 5 seconds on two CPU cores. For a slower one, raise the deadline or lower the batch size.
"""

import faulthandler
import os
import sys
import threading
from collections.abc import Callable
from typing import Protocol

from worker.telemetry.logs import get_logger

log = get_logger(__name__)

#: Exit status of a process that its watchdog ended (EX_SOFTWARE).
STALLED = 70


class _Watched(Protocol):
    @property
    def stalled_seconds(self) -> float: ...


class Watchdog:
    """Polls a batcher ten times within `limit_seconds`, in a thread of its own, until it is stopped.

    Two polls in a row must see the stall: after a process was suspended, the second finds its model at work
    again. Native code that never releases the interpreter stops this thread too; then Python's fault handler
    ends the process after twice the limit, with the stack of every thread and exit status 1.
    """

    def __init__(
        self, batcher: _Watched, limit_seconds: float, *, end: Callable[[int], object] = os._exit
    ) -> None:
        self._batcher = batcher
        self._limit = limit_seconds
        self._end = end
        self._stopped = threading.Event()
        self._arm()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _arm(self) -> None:
        faulthandler.dump_traceback_later(2 * self._limit, exit=True, file=sys.stderr)

    def _watch(self) -> None:
        seen = False
        while not self._stopped.wait(self._limit / 10):
            self._arm()
            stalled = self._batcher.stalled_seconds
            if seen and stalled > self._limit:
                log.critical(
                    "model_stalled",
                    detail="The model made no progress within the limit; the process ends.",
                    stalled_seconds=round(stalled, 1),
                    limit_seconds=self._limit,
                )
                self._end(STALLED)
                return
            seen = stalled > self._limit
