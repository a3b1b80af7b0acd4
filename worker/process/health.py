"""Liveness, readiness and start-up of a worker process.

`celery inspect ping` fails on a worker that is merely busy. These probes distinguish a worker that hangs,
which a restart helps, from a broker that is away, which it does not.
"""

import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from celery import bootsteps

from worker.telemetry.http import Answer

if TYPE_CHECKING:
    from celery import Celery

BEAT_SECONDS = 1.0

#: An event loop that is silent for so long takes no checks at present: not ready.
READY_LOOP_SECONDS = 5.0
#: An event loop that is silent for so long hangs if the broker answers: not alive. Celery waits up to 30
#: seconds between attempts to connect, and gives up a frozen connection after about twenty.
LIVE_LOOP_SECONDS = 60.0


class _Batcher(Protocol):
    @property
    def stalled_seconds(self) -> float: ...


class Health:
    """The state of a worker process, reported by its parts and read by its probes; safe for threads.

    A model thread that takes longer than `stall_limit_seconds` for one batch is stalled.
    """

    def __init__(self, *, stall_limit_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._stall_limit = stall_limit_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._batcher: _Batcher | None = None
        self._ready = False
        self._shutting_down = False
        self._loop_ran_at = clock()
        self._broker_up_since: float | None = None
        self._broker_fault = "the broker has not been asked yet"

    def watch(self, batcher: _Batcher) -> None:
        """Watch the batcher of a loaded model."""
        self._batcher = batcher

    def attach(self, app: "Celery") -> None:
        """Watch the event loop of the application's worker."""
        health = self

        class Beat(bootsteps.StartStopStep):
            """Beats in the consumer's event loop; a new connection starts it again."""

            def start(self, c: Any) -> None:
                c.timer.call_repeatedly(BEAT_SECONDS, health.beat)

        app.steps["consumer"].add(Beat)

    def probes(self) -> Mapping[str, Callable[[], Answer]]:
        """Return the probes by path."""
        return {"/livez": self.live, "/readyz": self.ready, "/startupz": self.started}

    def beat(self) -> None:
        """Note that the event loop runs."""
        self._loop_ran_at = self._clock()

    def became_ready(self) -> None:
        """Note that the model is warm and checks are taken."""
        self.beat()
        self._ready = True

    def shutting_down(self) -> None:
        """Note that no more checks are taken."""
        self._shutting_down = True

    def broker_answered(self) -> None:
        """Note that the broker answered."""
        with self._lock:
            if self._broker_up_since is None:
                self._broker_up_since = self._clock()

    def broker_failed(self, error: str) -> None:
        """Note that the broker did not answer."""
        with self._lock:
            self._broker_up_since = None
            self._broker_fault = error

    @property
    def consuming(self) -> bool:
        """Whether this process takes checks, whatever the state of the broker."""
        return self._own_fault() is None

    def live(self) -> Answer:
        """Liveness: whether the process works; no only where a restart would help."""
        if fault := self._stall():
            return self._answer(ok=False, reason=fault)
        if not self._ready:
            return self._answer(ok=True, reason="starting")
        if self._shutting_down:
            return self._answer(ok=True, reason="shutting down")
        # The event loop is silent too while the broker is away, and for a while after it came back.
        up_for = self._broker_up_for()
        if up_for is None:
            return self._answer(ok=True, reason=f"waiting for the broker: {self._broker_fault}")
        silent = self._loop_age()
        if min(silent, up_for) > LIVE_LOOP_SECONDS:
            return self._answer(ok=False, reason=f"the event loop was silent for {silent:.0f} seconds")
        return self._answer(ok=True, reason="alive")

    def ready(self) -> Answer:
        """Readiness: whether checks are taken now."""
        fault = self._own_fault()
        # Without a broker the event loop is silent too: the cause comes first.
        if self._ready and not self._shutting_down and self._broker_up_for() is None:
            fault = f"the broker does not answer: {self._broker_fault}"
        return self._answer(ok=fault is None, reason=fault or "taking checks")

    def started(self) -> Answer:
        """Start-up: whether the model is warm and the first connection was made."""
        return self._answer(ok=self._ready, reason="started" if self._ready else self._missing())

    def _own_fault(self) -> str | None:
        if not self._ready:
            return self._missing()
        if self._shutting_down:
            return "shutting down"
        if self._loop_age() > READY_LOOP_SECONDS:
            return f"the event loop was silent for {self._loop_age():.0f} seconds"
        return self._stall()

    def _missing(self) -> str:
        return "connecting to the broker" if self._batcher else "loading the model"

    def _stall(self) -> str | None:
        seconds = self._stalled()
        if seconds > self._stall_limit:
            return f"the model thread made no progress for {seconds:.0f} seconds"
        return None

    def _stalled(self) -> float:
        return self._batcher.stalled_seconds if self._batcher else 0.0

    def _loop_age(self) -> float:
        return self._clock() - self._loop_ran_at

    def _broker_up_for(self) -> float | None:
        with self._lock:
            return None if self._broker_up_since is None else self._clock() - self._broker_up_since

    def _answer(self, *, ok: bool, reason: str) -> Answer:
        return Answer(
            ok,
            reason,
            {
                "loop_age_seconds": round(self._loop_age(), 1),
                "model_stalled_seconds": round(self._stalled(), 1),
                "broker_answers": self._broker_up_for() is not None,
            },
        )
