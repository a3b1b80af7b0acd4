"""What each knob of the autoscaler costs: one day simulated again and again, one knob turned at a time."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.simulation.scaling import ScalingRule
from deploy.simulation.simulation import Outcome, simulate
from worker.operations.worker_model import WorkerModel

#: The knobs, and what is tried of each.
TRIED: dict[str, tuple[float, ...]] = {
    "start_seconds": (15, 30, 60, 90, 180, 300),
    "polling_interval_seconds": (5, 15, 30, 60),
    "cooldown_period_seconds": (60, 300, 900),
    "backlog_seconds_target": (10, 30, 60, 120),
    "scale_down_stabilization_seconds": (60, 180, 300, 600),
    "min_replicas": (0, 1, 2),
}
#: What is tried of the target of checks for each replica, times the rule's own.
TRIED_TARGETS = (0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 16.0)


@dataclass(frozen=True)
class Trial:
    """One day with one knob at one value: waits in seconds, what was paid in worker-hours."""

    knob: str
    value: float
    p50: float
    p95: float
    p99: float
    longest: float
    worker_hours: float
    most_workers: int

    @classmethod
    def of(cls, knob: str, value: float, outcome: Outcome) -> "Trial":
        """Sum up a day."""
        return cls(
            knob=knob,
            value=value,
            p50=outcome.wait(0.5),
            p95=outcome.wait(0.95),
            p99=outcome.wait(0.99),
            longest=float(outcome.waits.max()),
            worker_hours=outcome.worker_hours,
            most_workers=int(outcome.paid.max()),
        )


def sweep(
    arrivals: NDArray[np.int64], worker: WorkerModel, rule: ScalingRule, *, exact: bool = False
) -> Iterator[Trial]:
    """Yield a trial for every value of every knob, the others as `worker` and `rule` have them."""
    targets = {
        "checks_per_replica_target": [rule.checks_per_replica_target * share for share in TRIED_TARGETS]
    }
    for knob, values in {**TRIED, **targets}.items():
        for value in values:
            changed: dict[str, Any] = {knob: int(value) if knob == "min_replicas" else value}
            if knob == "start_seconds":
                outcome = simulate(arrivals, replace(worker, **changed), rule, exact=exact)
            else:
                outcome = simulate(arrivals, worker, replace(rule, **changed), exact=exact)
            yield Trial.of(knob, value, outcome)
