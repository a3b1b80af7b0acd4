"""`python -m deploy.simulation`: a day of traffic under the autoscaler."""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from deploy.simulation.plots import draw_day
from deploy.simulation.scaling import ScalingRule
from deploy.simulation.simulation import Outcome, simulate
from deploy.simulation.sweep import Trial, sweep
from deploy.simulation.traffic import Traffic
from detector.terminal import Console, echo_json
from worker.cli.errors import WrongUsageError, current_settings
from worker.cli.plan import demand_and_worker, load_options
from worker.operations.capacity import Demand, WorkerModel, plan

#: More checks per day than this, one by one, take minutes and gigabytes.
MAX_EXACT_CHECKS = 2e6

_RULE_HELP = {
    "min_replicas": "Fewest workers.",
    "max_replicas": "Most workers; unset means what the peak needs with its headroom.",
    "polling_interval_seconds": "How often KEDA asks whether there is any work.",
    "cooldown_period_seconds": "Idle time before the last worker is removed.",
    "backlog_seconds_target": "Target for the seconds of backlog.",
    "checks_per_replica_target": "Target for waiting and unacknowledged checks per worker; unset means the"
    " plan's recommendation.",
    "scale_down_stabilization_seconds": "How long an earlier, higher demand keeps workers.",
    "fallback_replicas": "Workers while no metric can be read.",
}


def _rule_options(command: Any) -> Any:
    """Add an option for every field of the rule."""
    for field in reversed(fields(ScalingRule)):
        from_plan = field.name in {"max_replicas", "checks_per_replica_target"}
        command = click.option(
            f"--{field.name.replace('_', '-')}",
            field.name,
            type=field.type if isinstance(field.type, type) else float,
            default=None if from_plan else field.default,
            show_default=not from_plan,
            help=_RULE_HELP[field.name],
        )(command)
    return command


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExample:\n  python -m deploy.simulation --checks-per-day 1e6 --pictures-per-second 3 --sweep",
)
@load_options
@_rule_options
@click.option(
    "--bursts", type=click.IntRange(0, 1000), default=6, show_default=True, help="Bursts on top of the day."
)
@click.option(
    "--burst-factor", type=float, default=2.0, show_default=True, help="Rate of a burst / rate without it."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the day.")
@click.option("--exact", is_flag=True, help="Simulate check by check, up to two million per day.")
@click.option("--sweep", "swept", is_flag=True, help="Repeat the day with one parameter changed at a time.")
@click.option(
    "--plot", "picture", type=click.Path(path_type=Path, dir_okay=False), help="Draw the day: PNG or WebP."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(
    *,
    bursts: int,
    burst_factor: float,
    seed: int,
    exact: bool,
    swept: bool,
    picture: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Simulate a day of traffic under the autoscaler: waits, worker-hours and cost."""
    settings = current_settings()
    demand, worker = demand_and_worker(options, batch_size=settings.batch_size)
    if exact and demand.checks_per_day > MAX_EXACT_CHECKS:
        raise WrongUsageError(f"--exact takes at most {MAX_EXACT_CHECKS:,.0f} checks per day")
    if picture and picture.suffix.lower() not in {".png", ".webp"}:
        raise WrongUsageError("--plot: the file name must end in .png or .webp")
    if burst_factor < 1:
        raise WrongUsageError("--burst-factor: must be at least 1")
    needed = plan(demand, worker, settings)
    rule = _rule(
        options,
        max_replicas=needed.workers_with_headroom,
        checks_per_replica_target=needed.checks_per_replica_target,
    )
    arrivals = Traffic(demand.checks_per_day, demand.peak_factor, bursts, burst_factor, seed).arrivals()
    outcome = simulate(arrivals, worker, rule, exact=exact)
    if picture:
        _draw(outcome, demand, worker, picture)
    trials = list(sweep(arrivals, worker, rule, exact=exact)) if swept else []
    day = _summary(outcome, demand)
    if as_json:
        document = {"autoscaling": asdict(rule), "day": day, "sweep": [asdict(trial) for trial in trials]}
        echo_json(document, indent=2)
        return
    console = Console()
    console.print(_day_table(day, rule))
    if trials:
        console.print(_sweep_table(trials))


def _rule(options: dict[str, Any], *, max_replicas: int, checks_per_replica_target: int) -> ScalingRule:
    values = {field.name: options[field.name] for field in fields(ScalingRule)}
    if values["max_replicas"] is None:
        values["max_replicas"] = max(max_replicas, values["min_replicas"], 1)
    if values["checks_per_replica_target"] is None:
        values["checks_per_replica_target"] = float(checks_per_replica_target)
    try:
        return ScalingRule(**values)
    except ValueError as error:
        raise WrongUsageError(str(error)) from error


def _draw(outcome: Outcome, demand: Demand, worker: WorkerModel, picture: Path) -> None:
    title = (
        f"{demand.checks_per_day:,.0f} checks per day, {worker.pictures_per_second:g} per second and worker,"
        f" cold start {worker.start_seconds:g} s"
    )
    try:
        draw_day(outcome, worker, title, picture)
    except OSError as error:
        raise WrongUsageError(f"--plot: {error}") from error


def _summary(outcome: Outcome, demand: Demand) -> dict[str, Any]:
    """Return the figures of a simulated day."""
    price = demand.price_per_worker_hour
    return {
        "checks": outcome.checks,
        "wait_seconds": {
            **{f"p{share * 100:g}": outcome.wait(share) for share in (0.5, 0.95, 0.99)},
            "max": float(outcome.waits.max(initial=0.0)),
        },
        "worker_hours": outcome.worker_hours,
        "max_workers": int(outcome.paid.max()),
        "max_checks_in_system": int(outcome.in_system.max()),
        "cost_per_million": (
            None if price is None else outcome.worker_hours * price / max(1, outcome.checks) * 1e6
        ),
    }


def _day_table(day: dict[str, Any], rule: ScalingRule) -> Table:
    waits = day["wait_seconds"]
    table = Table("A simulated day", "")
    table.add_row("Checks", f"{day['checks']:,}")
    table.add_row("Wait: p50, p95, p99, maximum", ", ".join(f"{value:,.1f} s" for value in waits.values()))
    table.add_row("Most checks waiting or in progress", f"{day['max_checks_in_system']:,}")
    table.add_row("Worker-hours", f"{day['worker_hours']:,.1f}")
    table.add_row("Most workers", f"{day['max_workers']:,} of {rule.max_replicas:,}")
    if day["cost_per_million"] is not None:
        table.add_row("Cost per million checks", f"{day['cost_per_million']:,.2f}")
    return table


def _sweep_table(trials: list[Trial]) -> Table:
    table = Table(
        "Parameter", "Value", "p50 s", "p95 s", "p99 s", "Max s", "Worker-hours", "Max workers", title="Sweep"
    )
    parameter = ""
    for trial in trials:
        if trial.parameter != parameter:
            table.add_section()
        table.add_row(
            "" if trial.parameter == parameter else trial.parameter,
            f"{trial.value:g}",
            *(f"{value:,.1f}" for value in (trial.p50, trial.p95, trial.p99, trial.max_wait)),
            f"{trial.worker_hours:,.1f}",
            f"{trial.max_workers:,}",
        )
        parameter = trial.parameter
    return table


if __name__ == "__main__":
    main(prog_name="python -m deploy.simulation")
