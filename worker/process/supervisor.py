"""The supervisor of worker processes: one for each GPU, restarted when it fails."""

import os
import queue
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from worker.process.gpus import visible_gpus
from worker.settings import Settings
from worker.telemetry.logs import get_logger

log = get_logger(__name__)

LONGEST_BACK_OFF_SECONDS = 30.0
#: Seconds beyond its own grace period after which a process is killed.
KILL_MARGIN_SECONDS = 10.0
POLL_SECONDS = 0.1
#: Exit status when settings keep the workers from starting, and when the restart limit is reached.
FAILED = 1

_READY = b"r"
_REFUSED = b"x"


class WorkerLink:
    """A worker's end of the link to its supervisor; `descriptor` is the socket that the supervisor passed on.

    When the supervisor ends, whatever the cause, this process is killed. Ctrl-C in the terminal reaches the
    supervisor, which passes it on.
    """

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=self._end_with_supervisor, name="worker-link", daemon=True).start()

    def ready(self) -> None:
        """Report that the model is warm and checks are taken."""
        with suppress(OSError):
            self._socket.send(_READY)

    def refused(self) -> None:
        """Report that the process ends for a mistake in its settings, which no restart will change."""
        with suppress(OSError):
            self._socket.send(_REFUSED)

    def _end_with_supervisor(self) -> None:
        with suppress(OSError):
            while self._socket.recv(16):
                pass
        os.kill(os.getpid(), signal.SIGKILL)


class SupervisorLink:
    """A supervisor's end of the link to one worker, and the socket that the worker inherits."""

    def __init__(self) -> None:
        self._own, self._workers = socket.socketpair()
        self._own.settimeout(0)
        self.is_ready = False
        self.was_refused = False

    @property
    def descriptor(self) -> int:
        """The socket that the worker inherits."""
        return self._workers.fileno()

    def inherited(self) -> None:
        """Close the worker's socket in this process."""
        self._workers.close()

    def poll(self) -> None:
        """Read what the worker has reported."""
        with suppress(OSError):
            report = self._own.recv(16)
            self.is_ready |= _READY in report
            self.was_refused |= _REFUSED in report

    def close(self) -> None:
        """Close the link."""
        self._own.close()


def supervise(settings: Settings, command: Sequence[str]) -> int:
    """Run worker processes until a signal ends them; return the exit status.

    `command` starts one worker and gets `--supervised DESCRIPTOR` appended. SIGTERM, SIGINT and SIGHUP shut
    the workers down, a second one or SIGQUIT ends them at once. A process that fails is restarted after an
    exponential, jittered back-off. When one fails more than `restart_limit` times within
    `restart_window_seconds`, the others are shut down and the status is 1.
    """
    return _Supervisor(settings, command, worker_environments(settings)).run()


def worker_environments(settings: Settings) -> list[dict[str, str]]:
    """Return the environment variables of each worker process: its GPU, its share of the CPU, its port.

    There is one process for each visible GPU, or one on a CPU; with `processes` set, so many, which share the
    GPUs in turn.
    """
    gpus = visible_gpus() if settings.device in {"auto", "cuda"} else []
    count = settings.processes or len(gpus) or 1
    port = int(os.environ.get("DNF_HTTP_PORT") or 0)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found: list[dict[str, str]] = []
    for number in range(count):
        environment: dict[str, str] = {}
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
        elif count > 1 and "OMP_NUM_THREADS" not in os.environ:
            # Each process would use every core.
            environment["OMP_NUM_THREADS"] = str(max(1, cores // count))
        if port:
            environment["DNF_HTTP_PORT"] = str(port + number)
        found.append(environment)
    return found


@dataclass
class _Worker:
    """One worker process and its successors."""

    number: int
    environment: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None
    link: SupervisorLink | None = None
    #: When the next process starts, by the monotonic clock.
    start_at: float = 0.0
    #: When processes failed, within the restart window.
    failures: deque[float] = field(default_factory=deque)

    def start(self, command: Sequence[str]) -> None:
        self.link = link = SupervisorLink()
        self.process = subprocess.Popen(  # noqa: S603 - this program itself
            [*command, "--supervised", str(link.descriptor)],
            stdin=subprocess.DEVNULL,
            env={**os.environ, **self.environment},
            pass_fds=[link.descriptor],
        )
        link.inherited()
        log.debug("process_started", process=self.number, pid=self.process.pid, **self.environment)

    @property
    def ready(self) -> bool:
        return self.process is not None and self.link is not None and self.link.is_ready

    def ended(self) -> int | None:
        """Return the exit status of a process that has ended, once."""
        if self.process is None or (status := self.process.poll()) is None:
            return None
        self.process = None
        return status


class _Supervisor:
    def __init__(
        self, settings: Settings, command: Sequence[str], environments: Sequence[Mapping[str, str]]
    ) -> None:
        self._settings = settings
        self._command = command
        self._workers = [_Worker(number, environment) for number, environment in enumerate(environments)]
        self._signals: queue.SimpleQueue[signal.Signals] = queue.SimpleQueue()
        self._stopping_since: float | None = None
        self._status = os.EX_OK
        self._all_ready = False

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves it
                signal.signal(number, lambda late, _: self._signals.put(signal.Signals(late)))
        while True:
            for worker in self._workers:
                self._poll(worker)
            running = [worker.process for worker in self._workers if worker.process]
            if self._stopping_since is None:
                self._announce_ready()
            elif not running:
                return self._status
            elif time.monotonic() > self._stopping_since + self._kill_after_seconds():
                self._kill(running)
            try:
                received = self._signals.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            self._pass_on(received)

    def _poll(self, worker: _Worker) -> None:
        if worker.link is not None:
            worker.link.poll()
        status = worker.ended()
        if status is not None:
            self._note_end(worker, status)
        if worker.process is None and self._stopping_since is None and time.monotonic() >= worker.start_at:
            worker.start(self._command)

    def _note_end(self, worker: _Worker, status: int) -> None:
        link, worker.link = worker.link, None
        if link is not None:
            link.poll()
            link.close()
        if self._stopping_since is not None:
            # A positive status means that the broker could not be told; a signal was ours.
            self._status = max(self._status, min(status, FAILED))
            return
        if link is not None and link.was_refused:
            # It has reported what is wrong.
            self._stop(signal.SIGTERM, FAILED)
            return
        now, window = time.monotonic(), self._settings.restart_window_seconds
        worker.failures.append(now)
        while worker.failures and worker.failures[0] < now - window:
            worker.failures.popleft()
        count = len(worker.failures)
        if count > self._settings.restart_limit:
            log.critical(
                "restart_limit_reached",
                process=worker.number,
                cause=_cause(status),
                failures=count,
                window_seconds=window,
                detail="A worker process failed too often; the others are shut down.",
            )
            self._stop(signal.SIGTERM, FAILED)
            return
        back_off = random.uniform(0.5, 1.0) * min(LONGEST_BACK_OFF_SECONDS, 2.0 ** (count - 1))
        worker.start_at = now + back_off
        log.error(
            "process_failed",
            process=worker.number,
            cause=_cause(status),
            failures=count,
            restart_in_seconds=round(back_off, 1),
        )

    def _announce_ready(self) -> None:
        ready = all(worker.ready for worker in self._workers)
        if ready and not self._all_ready:
            log.info("processes_ready", processes=len(self._workers))
        self._all_ready = ready

    def _pass_on(self, received: signal.Signals) -> None:
        at_once = received is signal.SIGQUIT or self._stopping_since is not None
        self._stop(signal.SIGQUIT if at_once else signal.SIGTERM, self._status)

    def _stop(self, number: signal.Signals, status: int) -> None:
        self._status = max(self._status, status)
        self._stopping_since = self._stopping_since or time.monotonic()
        for worker in self._workers:
            if worker.process is not None:
                worker.process.send_signal(number)

    def _kill(self, running: Sequence[subprocess.Popen[bytes]]) -> None:
        for process in running:
            log.error("process_killed", pid=process.pid, detail="It did not end within its grace period.")
            process.kill()
            process.wait()
        self._status = FAILED

    def _kill_after_seconds(self) -> float:
        return self._settings.shutdown_grace_seconds + KILL_MARGIN_SECONDS


def _cause(status: int) -> str:
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"exit status {status}"


def own_command() -> list[str]:
    """Return the command that started this process, whichever program it was."""
    return [sys.executable, *sys.orig_argv[1:]]
