"""The effect of each autoscaling parameter: one day, simulated with one parameter changed at a time."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.simulation.scaling import ScalingRule
from deploy.simulation.simulation import Outcome, simulate
from worker.operations.capacity import WorkerModel

#: The values tried for each parameter.
TRIED: dict[str, tuple[float, ...]] = {
    "start_seconds": (15, 30, 60, 90, 180, 300),
    "polling_interval_seconds": (5, 15, 30, 60),
    "cooldown_period_seconds": (60, 300, 900),
    "backlog_seconds_target": (10, 30, 60, 120),
    "scale_down_stabilization_seconds": (60, 180, 300, 600),
    "min_replicas": (0, 1, 2),
}
#: The factors tried on the rule's target of checks per replica.
TRIED_TARGETS = (0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 16.0)


@dataclass(frozen=True)
class Trial:
    """One day with one parameter changed: waits in seconds, cost in worker-hours."""

    parameter: str
    value: float
    p50: float
    p95: float
    p99: float
    max_wait: float
    worker_hours: float
    max_workers: int

    @classmethod
    def of(cls, parameter: str, value: float, outcome: Outcome) -> "Trial":
        """Return the figures of a day."""
        return cls(
            parameter=parameter,
            value=value,
            p50=outcome.wait(0.5),
            p95=outcome.wait(0.95),
            p99=outcome.wait(0.99),
            max_wait=float(outcome.waits.max()),
            worker_hours=outcome.worker_hours,
            max_workers=int(outcome.paid.max()),
        )


def sweep(
    arrivals: NDArray[np.int64], worker: WorkerModel, rule: ScalingRule, *, exact: bool = False
) -> Iterator[Trial]:
    """Yield a trial for every value of every parameter; the others are those of `worker` and `rule`."""
    targets = {
        "checks_per_replica_target": [rule.checks_per_replica_target * share for share in TRIED_TARGETS]
    }
    for parameter, values in {**TRIED, **targets}.items():
        for value in values:
            changed: dict[str, Any] = {parameter: int(value) if parameter == "min_replicas" else value}
            if parameter == "start_seconds":
                outcome = simulate(arrivals, replace(worker, **changed), rule, exact=exact)
            else:
                outcome = simulate(arrivals, worker, replace(rule, **changed), exact=exact)
            yield Trial.of(parameter, value, outcome)
