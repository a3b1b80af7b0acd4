"""Two models of the queue: check by check, or as a fluid in slices of one second (SimPy)."""

from collections import deque
from collections.abc import Generator
from typing import NamedTuple, Protocol

import numpy as np
import simpy
from numpy.typing import NDArray

from deploy.simulation.fleet import Fleet, Pod
from worker.operations.capacity import WorkerModel

Floats = NDArray[np.float64]


class Waits(NamedTuple):
    """When checks arrived, how long they waited for their batch (both in seconds), and how many they were."""

    arrived_at: Floats
    seconds: Floats
    checks: Floats


class QueueModel(Protocol):
    """A queue with the workers that process it."""

    #: The workers; the caller scales them.
    fleet: Fleet
    #: Checks completed so far.
    done: float

    @property
    def in_system(self) -> float:
        """Checks waiting or in progress."""

    def waits(self) -> Waits:
        """Return the waits so far; checks that have not started wait until now."""


class SingleChecks:
    """Every check is an event: exact, a million checks take some ten seconds."""

    def __init__(
        self, env: simpy.Environment, arrivals: NDArray[np.int64], worker: WorkerModel, seed: int
    ) -> None:
        self.fleet = Fleet(env, worker, self._work)
        self.done = 0.0
        self._env = env
        self._arrivals = arrivals
        self._worker = worker
        self._random = np.random.default_rng(seed)
        self._waiting: deque[float] = deque()
        self._in_progress = 0
        self._idle: deque[Pod] = deque()
        self._waits: list[tuple[float, float]] = []
        env.process(self._arrive())

    @property
    def in_system(self) -> float:
        """Checks waiting or in progress."""
        return len(self._waiting) + self._in_progress

    def waits(self) -> Waits:
        """Return each check's wait."""
        so_far = [*self._waits, *((since, self._env.now - since) for since in self._waiting)]
        arrived_at, seconds = np.asarray(so_far, dtype=np.float64).reshape(-1, 2).T
        return Waits(arrived_at, seconds, np.ones(len(so_far)))

    def _arrive(self) -> Generator[simpy.Event, None, None]:
        for second, count in enumerate(self._arrivals):
            for moment in np.sort(self._random.uniform(second, second + 1, count)):
                yield self._env.timeout(max(0.0, float(moment) - self._env.now))
                self._waiting.append(self._env.now)
                self._wake_one()

    def _wake_one(self) -> None:
        while self._idle:
            woken = self._idle.popleft().woken
            # A pod that was stopped while idle is still in this line.
            if not woken.triggered:
                woken.succeed()
                return

    def _work(self, pod: Pod) -> Generator[simpy.Event, None, None]:
        while not pod.stopping:
            batch = min(len(self._waiting), self._worker.batch_size)
            if not batch:
                pod.woken = self._env.event()
                self._idle.append(pod)
                yield pod.woken
                continue
            for _ in range(batch):
                since = self._waiting.popleft()
                self._waits.append((since, self._env.now - since))
            self._in_progress += batch
            yield self._env.timeout(self._seconds(batch))
            self._env.process(self._finish(batch))

    def _finish(self, batch: int) -> Generator[simpy.Event, None, None]:
        yield self._env.timeout(self._worker.overhead_seconds)
        self._in_progress -= batch
        self.done += batch

    def _seconds(self, batch: int) -> float:
        mean = self._worker.batch_seconds(batch)
        return mean if self._worker.times == "constant" else float(self._random.exponential(mean))


class Slices:
    """A fluid, drained second by second; waits are read from the arrival and completion curves."""

    def __init__(self, env: simpy.Environment, arrivals: NDArray[np.int64], worker: WorkerModel) -> None:
        self.fleet = Fleet(env, worker)
        self.done = 0.0
        self._env = env
        self._arrivals = arrivals
        self._worker = worker
        self._waiting = 0.0
        self._in_progress = 0.0
        self._done: list[float] = [0.0]
        env.process(self._pass_slices())

    @property
    def in_system(self) -> float:
        """Checks waiting or in progress."""
        return self._waiting + self._in_progress

    def waits(self) -> Waits:
        """Return the wait of each slice's middle check."""
        arrived = np.cumsum(self._arrivals, dtype=np.float64)
        middles = arrived - self._arrivals / 2
        done = np.asarray(self._done)
        # The time at which this many were completed. A slice that completes none ends no wait: np.interp
        # takes the last of equal values.
        started: Floats = np.interp(middles, done, np.arange(len(done), dtype=np.float64))
        started[middles > done[-1]] = self._env.now
        arrived_at = np.arange(len(arrived), dtype=np.float64) + 0.5
        return Waits(arrived_at, np.maximum(0.0, started - arrived_at), self._arrivals.astype(np.float64))

    def _pass_slices(self) -> Generator[simpy.Event, None, None]:
        second = 0
        while True:
            arrived = float(self._arrivals[second]) if second < len(self._arrivals) else 0.0
            yield self._env.timeout(1)
            second += 1
            capacity = self.fleet.ready * self._worker.pictures_per_second
            served = min(self._waiting + arrived, capacity)
            self._waiting += arrived - served
            self.done += served
            self._done.append(self.done)
            ready = max(1, self.fleet.ready)
            self._in_progress = ready * self._worker.checks_in_progress(served / ready)
