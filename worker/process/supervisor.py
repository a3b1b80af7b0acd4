"""A supervisor of worker processes: one for each GPU, started again when it ends by fault."""

import os
import queue
import random
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from worker.process.gpus import visible_gpus
from worker.process.tether import Holder
from worker.settings import Settings
from worker.telemetry.logs import get_logger

log = get_logger(__name__)

LONGEST_BACK_OFF_SECONDS = 30.0
#: What a process gets beyond its own grace period before it is killed.
KILL_MARGIN_SECONDS = 10.0
LOOK_SECONDS = 0.1
#: Exit status when settings keep the workers from starting, and when they fail again and again.
FAILED = 1


def supervise(settings: Settings, command: Sequence[str]) -> int:
    """Run worker processes until told to stop; return the exit status.

    `command` starts one worker and gets `--supervised DESCRIPTOR` appended. SIGTERM, SIGINT and SIGHUP stop
    the workers in order, a second one or SIGQUIT at once. A process that ends before it was told to is
    started again after an exponentially growing, jittered wait; one that did so more than `restart_limit`
    times within `restart_window_seconds` makes all others stop in order, and the status is 1.
    """
    return _Supervisor(settings, command, places(settings)).run()


def places(settings: Settings) -> list[dict[str, str]]:
    """Return the environment variables of each worker process: its GPU, its share of the CPU, its port.

    One process for each visible GPU; `processes` of them in turn when it is set. One on a CPU.
    """
    gpus = visible_gpus() if settings.device in {"auto", "cuda"} else []
    count = settings.processes or len(gpus) or 1
    port = int(os.environ.get("DNF_HTTP_PORT") or 0)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found: list[dict[str, str]] = []
    for number in range(count):
        place: dict[str, str] = {}
        if gpus:
            place["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
        elif count > 1 and "OMP_NUM_THREADS" not in os.environ:
            # Each would take all cores for its numerics.
            place["OMP_NUM_THREADS"] = str(max(1, cores // count))
        if port:
            place["DNF_HTTP_PORT"] = str(port + number)
        found.append(place)
    return found


@dataclass
class _Child:
    """A place for a worker process, and the one that is there now."""

    number: int
    place: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None
    holder: Holder | None = None
    start_at: float = 0.0
    faults: deque[float] = field(default_factory=deque)

    def start(self, command: Sequence[str]) -> None:
        self.holder = holder = Holder()
        self.process = subprocess.Popen(  # noqa: S603 - this program itself
            [*command, "--supervised", str(holder.descriptor)],
            stdin=subprocess.DEVNULL,
            env={**os.environ, **self.place},
            pass_fds=[holder.descriptor],
        )
        holder.inherited()
        log.debug("process_started", process=self.number, pid=self.process.pid, **self.place)

    @property
    def ready(self) -> bool:
        return self.process is not None and self.holder is not None and self.holder.is_ready

    def ended(self) -> int | None:
        """Return the exit status of a process that has ended, once."""
        if self.process is None or (status := self.process.poll()) is None:
            return None
        self.process = None
        return status


class _Supervisor:
    def __init__(
        self, settings: Settings, command: Sequence[str], places: Sequence[Mapping[str, str]]
    ) -> None:
        self._settings = settings
        self._command = command
        self._children = [_Child(number, place) for number, place in enumerate(places)]
        self._signals: queue.SimpleQueue[signal.Signals] = queue.SimpleQueue()
        self._stopping_since: float | None = None
        self._status = os.EX_OK
        self._all_ready = False

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves it
                signal.signal(number, lambda late, _: self._signals.put(signal.Signals(late)))
        while True:
            for child in self._children:
                self._look_after(child)
            running = [child.process for child in self._children if child.process]
            if self._stopping_since is None:
                self._announce_ready()
            elif not running:
                return self._status
            elif time.monotonic() > self._stopping_since + self._patience():
                self._kill(running)
            try:
                told = self._signals.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                continue
            self._pass_on(told)

    def _look_after(self, child: _Child) -> None:
        if child.holder is not None:
            child.holder.look()
        status = child.ended()
        if status is not None:
            self._note_end(child, status)
        if child.process is None and self._stopping_since is None and time.monotonic() >= child.start_at:
            child.start(self._command)

    def _note_end(self, child: _Child, status: int) -> None:
        holder, child.holder = child.holder, None
        if holder is not None:
            holder.look()
            holder.close()
        if self._stopping_since is not None:
            # A positive one says that the broker could not be told; a signal was ours.
            self._status = max(self._status, min(status, FAILED))
            return
        if holder is not None and holder.was_refused:
            # It said on its own what is wrong.
            self._stop(signal.SIGTERM, FAILED)
            return
        now, window = time.monotonic(), self._settings.restart_window_seconds
        child.faults.append(now)
        while child.faults and child.faults[0] < now - window:
            child.faults.popleft()
        count = len(child.faults)
        if count > self._settings.restart_limit:
            log.critical(
                "restart_limit_reached",
                process=child.number,
                cause=_cause(status),
                ends=count,
                window_seconds=window,
                detail="A worker process ended by fault again and again; the others are stopped.",
            )
            self._stop(signal.SIGTERM, FAILED)
            return
        wait = random.uniform(0.5, 1.0) * min(LONGEST_BACK_OFF_SECONDS, 2.0 ** (count - 1))
        child.start_at = now + wait
        log.error(
            "process_ended",
            process=child.number,
            cause=_cause(status),
            ends=count,
            restart_in_seconds=round(wait, 1),
        )

    def _announce_ready(self) -> None:
        ready = all(child.ready for child in self._children)
        if ready and not self._all_ready:
            log.info("processes_ready", processes=len(self._children))
        self._all_ready = ready

    def _pass_on(self, told: signal.Signals) -> None:
        at_once = told is signal.SIGQUIT or self._stopping_since is not None
        self._stop(signal.SIGQUIT if at_once else signal.SIGTERM, self._status)

    def _stop(self, number: signal.Signals, status: int) -> None:
        self._status = max(self._status, status)
        self._stopping_since = self._stopping_since or time.monotonic()
        for child in self._children:
            if child.process is not None:
                child.process.send_signal(number)

    def _kill(self, running: Sequence[subprocess.Popen[bytes]]) -> None:
        for process in running:
            log.error("process_killed", pid=process.pid, detail="It did not end in its grace period.")
            process.kill()
            process.wait()
        self._status = FAILED

    def _patience(self) -> float:
        return self._settings.shutdown_grace_seconds + KILL_MARGIN_SECONDS


def _cause(status: int) -> str:
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"exit status {status}"


def own_command() -> list[str]:
    """Return the command that started this process, whichever program it was."""
    return [sys.executable, *sys.orig_argv[1:]]
