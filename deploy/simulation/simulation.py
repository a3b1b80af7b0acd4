"""A day of traffic under the autoscaler, check by check or in slices of one second.

Both models share the clock, the pods, the rule, the arrivals and the exporter's own throughput estimate.
Slices work at any rate, even a billion checks per day; the tests compare them with single checks at a small
rate, and single checks with queueing theory.
"""

from collections.abc import Generator
from dataclasses import dataclass
from math import ceil

import numpy as np
import simpy
from numpy.typing import NDArray

from deploy.simulation.fleet import autoscale
from deploy.simulation.queue_model import Floats, QueueModel, SingleChecks, Slices
from deploy.simulation.scaling import Load, ScalingRule
from worker.operations.capacity import WorkerModel
from worker.operations.exporter import Throughput

#: Prometheus scrapes the exporter this often; KEDA sees the latest scrape.
SCRAPE_SECONDS = 15
#: Prometheus and the autoscaler are out of phase: here a scrape is seven seconds old when it is used.
SCRAPE_PHASE = 8
#: Time for the queue to drain after the last arrival; what remains counts as waiting until then.
AFTER_SECONDS = 7200


@dataclass(frozen=True)
class Outcome:
    """The result of a simulated day.

    `waits` are seconds from submission to the start of a batch, each for `weights` checks that arrived at
    `arrived_at`. The series have one value per second, (S,): checks that `arrived`, checks `in_system`
    (waiting or in progress), workers `ready`, and workers `paid` (starting, ready or draining).
    """

    waits: Floats
    weights: Floats
    arrived_at: Floats
    arrived: Floats
    in_system: Floats
    ready: Floats
    paid: Floats

    def wait(self, share: float) -> float:
        """Return a quantile of the waits in seconds: `share` of the checks waited no longer."""
        order = np.argsort(self.waits)
        reached = np.cumsum(self.weights[order])
        place = int(np.searchsorted(reached, share * reached[-1]))
        return float(self.waits[order][min(place, len(order) - 1)])

    @property
    def mean_wait(self) -> float:
        """The mean wait in seconds."""
        return float(np.average(self.waits, weights=self.weights))

    @property
    def worker_hours(self) -> float:
        """Hours in which workers occupied a machine, busy or not."""
        return float(self.paid.sum() / 3600)

    @property
    def checks(self) -> int:
        """Checks that arrived."""
        return int(self.arrived.sum())


def simulate(
    arrivals: NDArray[np.int64],
    worker: WorkerModel,
    rule: ScalingRule,
    *,
    exact: bool = False,
    fixed_replicas: int | None = None,
    blind: tuple[float, float] = (0.0, 0.0),
    seed: int = 0,
) -> Outcome:
    """Simulate `arrivals` (checks per second) under a rule, in slices or check by check (`exact`).

    `fixed_replicas` replaces the autoscaler; during the interval `blind` (seconds) no metric can be read.
    """
    env = simpy.Environment()
    queue: QueueModel = SingleChecks(env, arrivals, worker, seed) if exact else Slices(env, arrivals, worker)
    throughput = Throughput()
    series: list[tuple[float, int, int]] = []

    scraped = Load(0.0, 0.0, queue.fleet.ready)

    def watch() -> Generator[simpy.Event, None, None]:
        nonlocal scraped
        while True:
            series.append((queue.in_system, queue.fleet.ready, queue.fleet.paid))
            if env.now % SCRAPE_SECONDS == SCRAPE_PHASE:
                alive = queue.fleet.ready
                # A worker prefetches twice its batch from the queue.
                waiting = queue.in_system - min(queue.in_system, alive * 2 * worker.batch_size)
                throughput.record(env.now, published=int(queue.done), alive=alive, waiting=round(waiting))
                attainable = throughput.attainable(worker.pictures_per_second)
                scraped = Load(queue.in_system, queue.in_system / attainable, queue.fleet.ready)
            yield env.timeout(1)

    def load() -> Load | None:
        return None if blind[0] <= env.now < blind[1] else scraped

    if fixed_replicas is None:
        queue.fleet.scale_to(_initial_workers(arrivals, worker, rule), immediately=True)
        autoscale(env, queue.fleet, rule, load)
    else:
        queue.fleet.scale_to(fixed_replicas, immediately=True)
    env.process(watch())
    env.run(until=len(arrivals) + AFTER_SECONDS)
    waited = queue.waits()
    in_system, ready, paid = np.asarray(series[: len(arrivals)], dtype=np.float64).T
    return Outcome(
        waited.seconds, waited.checks, waited.arrived_at, arrivals.astype(np.float64), in_system, ready, paid
    )


def _initial_workers(arrivals: NDArray[np.int64], worker: WorkerModel, rule: ScalingRule) -> int:
    """Return the workers that the first ten minutes need: they are still running from the day before."""
    needed = ceil(1.1 * float(arrivals[:600].mean()) / worker.pictures_per_second)
    return min(max(needed, rule.min_replicas), rule.max_replicas)
