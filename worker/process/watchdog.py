"""The watchdog ends the process when the model makes no progress.

Celery's time limits do nothing in threads, and a single thread that hangs in native code cannot be ended.
With a limit below the deadline of a check (by default 60 of 90 seconds) the attempts of the batch count as
lost, its checks are delivered again, each isolated, and the one at fault is dead-lettered after
`max_attempts`. The limit must be well above the slowest honest batch: 16 pictures take the default detector
about 5 seconds on two CPU cores. For a slower one, raise the deadline or lower the batch size.

Time is counted in polls: while the process is suspended, by SIGSTOP or with its machine, nothing polls.
"""

import faulthandler
import os
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Protocol

from worker.process.exit import exit_process
from worker.telemetry.logs import get_logger

log = get_logger(__name__)

#: Exit status of a process that its watchdog ended (EX_SOFTWARE).
STALLED = 70

_POLLS_PER_LIMIT = 10

# Native code that hangs without releasing the interpreter stops the watchdog's thread too. This guard, a
# process of its own, then misses the thread's bytes, and aborts the worker unless it is suspended. Arguments:
# the worker's process id, the seconds to wait for a byte, how often it may be missing.
_GUARD = """
import os, select, signal, sys
pid, seconds, limit = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
def suspended():
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] in "Tt"
    except OSError:
        return False
missed = 0
while missed < limit:
    if select.select([0], [], [], seconds)[0]:
        if not os.read(0, 4096):
            sys.exit()
        missed = 0
    elif not suspended():
        missed += 1
os.kill(pid, signal.SIGABRT)
"""


class _Watched(Protocol):
    @property
    def running_since(self) -> float | None: ...


class Watchdog:
    """Polls a batcher ten times within `limit_seconds`, in a thread of its own, until it is stopped.

    A batch that runs for more than ten polls ends the process with `STALLED`. When the interpreter itself
    hangs for twice the limit, the process aborts (SIGABRT), with the stack of every thread on standard error.
    """

    def __init__(self, batcher: _Watched, limit_seconds: float) -> None:
        self._batcher = batcher
        self._limit = limit_seconds
        self._stopped = threading.Event()
        faulthandler.enable()
        seconds = limit_seconds / _POLLS_PER_LIMIT
        arguments = [str(os.getpid()), str(seconds), str(2 * _POLLS_PER_LIMIT)]
        self._guard = subprocess.Popen(  # noqa: S603 - a constant program
            [sys.executable, "-S", "-E", "-c", _GUARD, *arguments],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()
        self._thread.join()
        if self._guard.stdin:
            with suppress(BrokenPipeError):
                self._guard.stdin.close()
        self._guard.wait()

    def _watch(self) -> None:
        watched, polls = self._batcher.running_since, 0
        while not self._stopped.wait(self._limit / _POLLS_PER_LIMIT):
            if self._guard.stdin:
                with suppress(OSError):  # without its guard the process goes on
                    os.write(self._guard.stdin.fileno(), b".")
            running = self._batcher.running_since
            polls = polls + 1 if running is not None and running == watched else 0
            watched = running
            if polls > _POLLS_PER_LIMIT:
                log.critical(
                    "model_stalled",
                    detail="The model made no progress within the limit; the process ends.",
                    limit_seconds=self._limit,
                )
                exit_process(STALLED)
