"""The plan, a day and a sweep, for people."""

from typing import TYPE_CHECKING, Any

from rich.table import Table

from deploy.simulation.scaling import ScalingRule
from worker.operations.capacity import Demand, Plan

if TYPE_CHECKING:
    from deploy.simulation.simulation import Outcome
    from deploy.simulation.sweep import Trial

_STEP = 1000


def summary(outcome: "Outcome", demand: Demand) -> dict[str, Any]:
    """Return the figures of a simulated day."""
    price = demand.worker_hour_price
    return {
        "checks": outcome.checks,
        "wait_seconds": {
            **{f"p{share * 100:g}": outcome.wait(share) for share in (0.5, 0.95, 0.99)},
            "longest": float(outcome.waits.max(initial=0.0)),
        },
        "worker_hours": outcome.worker_hours,
        "most_workers": int(outcome.paid.max()),
        "most_checks_in_hand": int(outcome.in_system.max()),
        "cost_a_million": None
        if price is None
        else outcome.worker_hours * price / max(1, outcome.checks) * 1e6,
    }


def plan_table(made: Plan) -> Table:
    """Return the plan for people."""
    table = Table("Needed", "How much", title="The plan")
    table.add_row("Checks a second, mean and peak", f"{made.mean_rate:,.1f} and {made.peak_rate:,.1f}")
    table.add_row(
        "Workers at the mean, at the peak, with head-room",
        f"{made.workers_at_mean:,}, {made.workers_at_peak:,}, {made.workers_with_headroom:,}",
    )
    table.add_row(
        "If the peak comes at once",
        f"{made.checks_waiting_while_workers_start:,} wait, gone in {made.seconds_to_work_them_off:,.0f} s",
    )
    table.add_row("Redis servers", f"{made.brokers:,}")
    for name, size in made.redis.model_dump().items():
        table.add_row(f"Redis memory: {name.replace('_', ' ')}", _size(size))
    table.add_row(
        "The verdict stream holds, at the peak", f"{made.stream_holds_seconds_at_peak:,.1f} s of events"
    )
    table.add_row(
        "S3 reads and bytes a second at the peak",
        f"{made.s3_reads_a_second_at_peak:,.1f} and {_size(made.s3_bytes_a_second_at_peak)}",
    )
    table.add_row("S3 reads and bytes a day", f"{made.s3_reads_a_day:,.0f} and {_size(made.s3_bytes_a_day)}")
    table.add_row("autoscaling.checksPerReplicaTarget", f"{made.checks_per_replica_target}")
    if made.cost_a_million_when_never_idle is not None:
        table.add_row("A million checks, workers never idle", f"{made.cost_a_million_when_never_idle:,.2f}")
        table.add_row(
            "A million checks, a fixed fleet with head-room", f"{made.cost_a_million_with_a_fixed_fleet:,.2f}"
        )
    return table


def day_table(day: dict[str, Any], rule: ScalingRule) -> Table:
    """Return the figures of a simulated day for people."""
    waits = day["wait_seconds"]
    table = Table("A simulated day", "", title="Under the autoscaler")
    table.add_row("Checks", f"{day['checks']:,}")
    table.add_row("Wait, p50, p95, p99, longest", ", ".join(f"{value:,.1f} s" for value in waits.values()))
    table.add_row("Most checks waiting or in work", f"{day['most_checks_in_hand']:,}")
    table.add_row("Worker-hours", f"{day['worker_hours']:,.1f}")
    table.add_row("Most workers", f"{day['most_workers']:,} of {rule.max_replicas:,}")
    if day["cost_a_million"] is not None:
        table.add_row("A million checks", f"{day['cost_a_million']:,.2f}")
    return table


def sweep_table(trials: "list[Trial]") -> Table:
    """Return the trials for people, knob by knob."""
    table = Table(
        "Knob", "Value", "p50 s", "p95 s", "p99 s", "Longest s", "Worker-hours", "Most", title="Sweep"
    )
    knob = ""
    for trial in trials:
        if trial.knob != knob:
            table.add_section()
        table.add_row(
            "" if trial.knob == knob else trial.knob,
            f"{trial.value:g}",
            *(f"{value:,.1f}" for value in (trial.p50, trial.p95, trial.p99, trial.longest)),
            f"{trial.worker_hours:,.1f}",
            f"{trial.most_workers:,}",
        )
        knob = trial.knob
    return table


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB", "TB", "PB"):
        if count < _STEP or unit == "PB":
            break
        count /= _STEP
    return f"{count:,.1f} {unit}" if unit != "bytes" else f"{count:.0f} bytes"
