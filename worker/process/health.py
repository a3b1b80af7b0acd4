"""What the probes say of a worker process.

`celery inspect ping` fails on a worker that is merely busy. Told apart here are a worker that hangs, which
starting again mends, and a broker that is away, which it does not.
"""

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from celery import bootsteps
from celery.signals import worker_ready, worker_shutting_down

from worker.telemetry.http import Answer

if TYPE_CHECKING:
    from celery import Celery

BEAT_SECONDS = 1.0

#: A loop that is silent for so long takes no checks at present: not ready.
READY_LOOP_SECONDS = 5.0
#: A loop that is silent for so long beside a broker that answers hangs: not alive. Celery waits up to 30
#: seconds between attempts to connect, and gives up a frozen connection after some twenty.
LIVE_LOOP_SECONDS = 60.0


class _Batcher(Protocol):
    @property
    def stalled_seconds(self) -> float: ...


class Health:
    """The state of a worker process, told by its parts and asked by its probes; safe for threads.

    `stall_limit_seconds` bounds the time that the model thread may be at one batch.
    """

    def __init__(self, *, stall_limit_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._stall_limit = stall_limit_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._batcher: _Batcher | None = None
        self._ready = False
        self._stopping = False
        self._beaten = clock()
        self._broker_up_since: float | None = None
        self._broker_fault = "the broker was not asked yet"

    def watch(self, batcher: _Batcher) -> None:
        """Watch the batcher of a model that is loaded."""
        self._batcher = batcher

    def attach(self, app: "Celery") -> None:
        """Watch the application's event loop, its start and its stop."""
        health = self

        class Beat(bootsteps.StartStopStep):
            """Beats in the consumer's event loop; a reconnection stops and starts it."""

            def start(self, c: Any) -> None:
                c.timer.call_repeatedly(BEAT_SECONDS, health.beat)

        app.steps["consumer"].add(Beat)
        worker_ready.connect(lambda **_: health.became_ready(), weak=False)
        worker_shutting_down.connect(lambda **_: health.began_to_stop(), weak=False)

    def beat(self) -> None:
        """Note that the event loop runs."""
        self._beaten = self._clock()

    def became_ready(self) -> None:
        """Note that the model is warm and checks are taken."""
        self.beat()
        self._ready = True

    def began_to_stop(self) -> None:
        """Note that no more checks are taken."""
        self._stopping = True

    def broker_answered(self) -> None:
        """Note that the broker did as it was asked."""
        with self._lock:
            if self._broker_up_since is None:
                self._broker_up_since = self._clock()

    def broker_failed(self, why: str) -> None:
        """Note that the broker did not."""
        with self._lock:
            self._broker_up_since = None
            self._broker_fault = why

    @property
    def consuming(self) -> bool:
        """Whether this process takes checks, as far as it depends on itself."""
        return self._own_fault() is None

    def live(self) -> Answer:
        """Say whether going on is worthwhile; no only where starting again would help."""
        if fault := self._stall():
            return self._answer(ok=False, reason=fault)
        if not self._ready:
            return self._answer(ok=True, reason="starting")
        if self._stopping:
            return self._answer(ok=True, reason="finishing what it began")
        # A loop that waits for a broker is silent too, and for a while after it came back.
        up_for = self._broker_up_for()
        if up_for is None:
            return self._answer(ok=True, reason=f"waits for the broker: {self._broker_fault}")
        silent = self._loop_age()
        if min(silent, up_for) > LIVE_LOOP_SECONDS:
            return self._answer(ok=False, reason=f"the event loop was silent for {silent:.0f} seconds")
        return self._answer(ok=True, reason="alive")

    def ready(self) -> Answer:
        """Say whether checks are taken now."""
        fault = self._own_fault()
        # Without a broker the loop falls silent too: the cause comes first.
        if self._ready and not self._stopping and self._broker_up_for() is None:
            fault = f"the broker does not answer: {self._broker_fault}"
        return self._answer(ok=fault is None, reason=fault or "takes checks")

    def started(self) -> Answer:
        """Say whether the model is warm and the first connection was made."""
        return self._answer(ok=self._ready, reason="started" if self._ready else self._missing())

    def _own_fault(self) -> str | None:
        if not self._ready:
            return self._missing()
        if self._stopping:
            return "stopping"
        if self._loop_age() > READY_LOOP_SECONDS:
            return f"the event loop was silent for {self._loop_age():.0f} seconds"
        return self._stall()

    def _missing(self) -> str:
        return "connects to the broker" if self._batcher else "loads the model"

    def _stall(self) -> str | None:
        seconds = self._stalled()
        if seconds > self._stall_limit:
            return f"the model thread made no progress for {seconds:.0f} seconds"
        return None

    def _stalled(self) -> float:
        return self._batcher.stalled_seconds if self._batcher else 0.0

    def _loop_age(self) -> float:
        return self._clock() - self._beaten

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
