"""An orderly stop: what waits goes back to its queue at once, what runs is finished within a grace period.

Celery's warm shutdown waits for running tasks without a limit, and holds what it has not begun until then;
its soft and cold shutdowns end by waiting for the threads of the pool too.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import redis
from celery import bootsteps
from celery.signals import worker_ready, worker_shutting_down
from celery.worker import state

from worker.broker.consumer import ChecksInWork
from worker.telemetry.logs import get_logger

if TYPE_CHECKING:
    from celery import Celery

log = get_logger(__name__)

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)

# How long the event loop may take to let go of its queues.
LETTING_GO_SECONDS = 2.0
# How long an acknowledgement may take that is on its way at the end: as the broker's connection may.
SETTLING_SECONDS = 5.0


class OrderlyStop:
    """Stops a Celery worker with threads on SIGTERM, SIGINT or SIGQUIT.

    The first SIGTERM or SIGINT: nothing more is taken or begun, and what was taken and not begun, checks that
    wait for a retry among it, goes back to its queue at once. What runs is finished. After `grace_seconds`,
    at a second signal, or at SIGQUIT, what runs goes back too and the process ends in the midst of it, with
    status 0, or 1 if the broker could not be told; then it delivers the checks again after the visibility
    timeout. A check that is done twice has one verdict all the same. What the process ignores when this is
    made, it goes on to ignore.
    """

    def __init__(
        self, in_work: ChecksInWork, *, grace_seconds: float, end: Callable[[int], object] = os._exit
    ) -> None:
        self._in_work = in_work
        self._grace_seconds = grace_seconds
        self._end = end
        self._numbers = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
        # Written by the interpreter in whatever thread a signal arrives. A handler in Python runs in the main
        # thread, which may just be on its way into a wait that ends with the last check.
        self._told, self._tell = socket.socketpair()
        self._tell.setblocking(False)  # noqa: FBT003 - socket's own signature
        self._let_go = threading.Event()
        self._worker: Any = None

    def attach(self, app: "Celery") -> None:
        """Become a part of the application's worker; the signals are taken over when it is ready."""
        stop = self

        class LetGo(bootsteps.StartStopStep):
            """Stops after the consumer and before the pool, which waits for its threads."""

            requires = ("celery.worker.components:Pool",)

            def stop(self, w: Any) -> None:
                stop._put_back_waiting(w)

        def ready(sender: Any, **_: object) -> None:
            stop._worker = sender.controller
            signal.set_wakeup_fd(stop._tell.fileno(), warn_on_full_buffer=False)
            for number in STOPPING:
                # Celery has put handlers of its own in the meantime, also for what was ignored.
                ignored = number not in stop._numbers
                signal.signal(number, signal.SIG_IGN if ignored else lambda *_: None)
            threading.Thread(target=stop._supervise, name="stop", daemon=True).start()

        app.steps["worker"].add(LetGo)
        worker_ready.connect(ready, weak=False)

    def _next(self, seconds: float | None) -> signal.Signals | None:
        """Return the next signal to stop, or None when none came in time."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            self._told.settimeout(None if deadline is None else max(0.001, deadline - time.monotonic()))
            try:
                number = self._told.recv(1)[0]
            except TimeoutError:
                return None
            if number in self._numbers:
                return signal.Signals(number)

    def _supervise(self) -> None:
        first = self._next(None) or signal.SIGTERM
        state.should_stop = os.EX_OK  # type: ignore[assignment] # the stub knows its first value
        worker_shutting_down.send(sender=self._worker.hostname, sig=first.name, how="Warm", exitcode=0)
        why = f"{first.name} was received"
        if first is not signal.SIGQUIT:
            why = f"the grace period of {self._grace_seconds:g} seconds was over"
            if second := self._next(self._grace_seconds):
                why = f"{second.name} was received as well"
        self._let_go.wait(LETTING_GO_SECONDS)
        returned, _, fault = self._put_back(keep=frozenset())
        log.warning("worker_stopped_early", why=why, returned=returned, fault=fault)
        self._end(os.EX_OK if fault is None else 1)

    def _put_back_waiting(self, worker: Any) -> None:
        self._worker = worker
        returned, kept, fault = self._put_back(keep=self._in_work.close(), drain=True)
        log.info("checks_requeued", returned=returned, running=kept, fault=fault)
        self._let_go.set()

    def _put_back(self, *, keep: frozenset[str], drain: bool = False) -> tuple[int, int, str | None]:
        """Put back what the worker holds; return how many messages, how many it kept, and what went wrong."""
        returned = kept = 0
        consumer = self._worker.consumer.task_consumer
        if consumer is None:
            return 0, 0, None
        channel = consumer.channel
        try:
            if drain:
                channel.finish_taking()
            for tag in channel.qos.held():
                if tag in keep:
                    kept += 1
                elif channel.qos.put_back(tag):
                    returned += 1
            if not keep:
                channel.qos.finish_settling(SETTLING_SECONDS)
        except (redis.RedisError, OSError, AttributeError) as error:
            # kombu's channel loses its parts when its connection is closed.
            return returned, kept, f"{type(error).__name__}: {error}"
        return returned, kept, None
