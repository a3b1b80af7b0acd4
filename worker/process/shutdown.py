"""Shutdown: what has not started is requeued at once, what runs finishes within a grace period.

Celery's warm shutdown waits for running tasks without a limit and keeps what has not started until then; its
soft and cold shutdowns end by waiting for the threads of the pool too.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

import redis
from celery.worker import state

from worker.broker.transport import UnacknowledgedMessages
from worker.process.exit import exit_process
from worker.telemetry.logs import get_logger

log = get_logger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)

# How long the event loop may take to end.
_LOOP_END_SECONDS = 2.0
# How long an acknowledgement on its way may take: as long as a reply of the broker.
_ACKNOWLEDGE_SECONDS = 5.0


class Shutdown:
    """Shuts this process down on SIGTERM, SIGINT or SIGQUIT; a signal that it ignored before stays ignored.

    Before `ready` a signal ends the process: it has taken nothing. After it, the first SIGTERM or SIGINT lets
    no further check start and requeues what has not started, with the checks that wait for a retry; running
    checks finish. After `grace_seconds`, at a second signal, or at SIGQUIT, the running checks are requeued
    too and the process ends with status 0, or 1 if the broker could not be told; then it delivers them again
    after the visibility timeout. A check that runs twice has one verdict.
    """

    def __init__(
        self,
        unacknowledged: UnacknowledgedMessages,
        *,
        grace_seconds: float,
        on_signal: Callable[[], object],
    ) -> None:
        self._unacknowledged = unacknowledged
        self._grace_seconds = grace_seconds
        self._on_signal = on_signal
        self._ready = False
        self._consumer: Any = None
        self._loop_ended = threading.Event()
        self._signals = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        # The interpreter writes to the socket in whatever thread a signal arrives. A handler in Python runs
        # in the main thread, which may be on its way into a wait that ends with the last check.
        self._received, self._sender = socket.socketpair()
        self._sender.setblocking(False)  # noqa: FBT003 - socket's own signature
        for number in self._signals:
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._run, name="shutdown", daemon=True).start()

    def ready(self, worker: Any) -> None:
        """Note that Celery's worker takes checks from now on."""
        self._consumer = worker.consumer
        self._ready = True

    def consumer_stopped(self, consumer: Any) -> None:
        """Requeue what has not started, once the event loop has ended; Celery then waits for what runs."""
        running = self._unacknowledged.close()
        requeued, fault = self._requeue(consumer, keep=running, finish_taking=True)
        log.info("checks_requeued", requeued=requeued, fault=fault)
        self._loop_ended.set()

    def _run(self) -> None:
        """Wait for the first signal, and see the process to its end."""
        first = self._next_signal() or signal.SIGTERM
        if not self._ready:
            exit_process(os.EX_OK)
        log.info("worker_stopping", signal=first.name)
        self._on_signal()

        # 1. The event loop ends, and `consumer_stopped` requeues what has not started.
        state.should_stop = os.EX_OK  # type: ignore[assignment] # the stub knows its first value

        # 2. The process ends by itself with its last running check, unless it is out of time before.
        reason = f"{first.name} was received"
        if first is not signal.SIGQUIT:
            second = self._next_signal(self._grace_seconds)
            reason = (
                f"{second.name} was received as well"
                if second
                else f"the grace period of {self._grace_seconds:g} seconds is over"
            )

        # 3. Running checks are requeued, acknowledgements on their way arrive, and the process ends.
        self._loop_ended.wait(_LOOP_END_SECONDS)
        requeued, fault = self._requeue(self._consumer)
        if fault is None and not self._unacknowledged.wait_settled(_ACKNOWLEDGE_SECONDS):
            fault = "the broker did not answer an acknowledgement in time"
        log.warning("worker_stopped_early", reason=reason, requeued=requeued, fault=fault)
        exit_process(os.EX_OK if fault is None else 1)

    def _next_signal(self, seconds: float | None = None) -> signal.Signals | None:
        """Return the next of our signals, or None when none came in time."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            self._received.settimeout(None if deadline is None else max(0.001, deadline - time.monotonic()))
            try:
                number = self._received.recv(1)[0]
            except TimeoutError:
                return None
            if number in self._signals:
                return signal.Signals(number)

    def _requeue(
        self, consumer: Any, *, keep: Collection[str] = (), finish_taking: bool = False
    ) -> tuple[int, str | None]:
        """Requeue the consumer's messages; return how many, and what went wrong."""
        if consumer.task_consumer is None:
            return 0, None
        channel = consumer.task_consumer.channel
        try:
            if finish_taking:
                channel.finish_taking()
            return channel.requeue_unacknowledged(keep=keep), None
        except (redis.RedisError, OSError, AttributeError) as error:
            # kombu's channel loses its parts when its connection is closed.
            return 0, f"{type(error).__name__}: {error}"
