"""dnf-worker plan: size a fleet, and see a day of it under the autoscaler."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import ValidationError
from rich.console import Console

from deploy.simulation.scaling import ScalingRule
from worker.cli.errors import WrongUsageError, settings_in_force
from worker.cli.plan_tables import day_table, plan_table, summary, sweep_table
from worker.contract.messages import first_fault
from worker.operations.capacity import CHECKS_A_SECOND_A_BROKER, Demand, Plan, plan
from worker.operations.worker_model import WorkerModel

if TYPE_CHECKING:
    from deploy.simulation.simulation import Outcome
    from deploy.simulation.sweep import Trial

#: Beyond so many checks a day single checks take minutes and gigabytes.
MOST_EXACT_CHECKS = 2e6

_RULE_HELP = {
    "min_replicas": "Fewest workers.",
    "max_replicas": "Most workers; unset means what the peak needs with its head-room.",
    "polling_interval_seconds": "How often KEDA looks whether there is work at all.",
    "cooldown_period_seconds": "Quiet time before the last worker goes.",
    "backlog_seconds_target": "Seconds of backlog that are wanted.",
    "checks_per_replica_target": "Checks waiting or in work for each worker; unset means as recommended.",
    "scale_down_stabilization_seconds": "How long a higher demand keeps workers.",
    "fallback_replicas": "Workers when no figure can be read.",
}


def _rule_options(command: Any) -> Any:
    """Add an option for every field of the rule."""
    for field in reversed(fields(ScalingRule)):
        asked = field.name in {"max_replicas", "checks_per_replica_target"}
        command = click.option(
            f"--{field.name.replace('_', '-')}",
            field.name,
            type=field.type if isinstance(field.type, type) else float,
            default=None if asked else field.default,
            show_default=not asked,
            help=_RULE_HELP[field.name],
        )(command)
    return command


@click.command("plan")
@click.option("--checks-a-day", type=float, required=True, help="Checks in a day: 1e6, 250000.")
@click.option(
    "--pictures-a-second", type=float, required=True, help="One worker, measured: dnf-worker bench says it."
)
@click.option(
    "--peak-factor", type=float, default=2.0, show_default=True, help="Busiest moment over the mean."
)
@click.option("--headroom", type=float, default=0.25, show_default=True, help="Share on top of the peak.")
@click.option(
    "--start-seconds",
    type=float,
    default=90.0,
    show_default=True,
    help="From a pod's creation to its first check.",
)
@click.option(
    "--fixed-share",
    type=float,
    default=0.0,
    show_default=True,
    help="Share of a full batch's time that a batch of one takes too: 0 on a CPU, towards 1 on a GPU.",
)
@click.option(
    "--outside-seconds",
    type=float,
    default=0.1,
    show_default=True,
    help="Of a check outside of its batch: fetch, decode, publish.",
)
@click.option("--picture-bytes", type=float, default=1e6, show_default=True, help="Mean size of an upload.")
@click.option(
    "--checks-a-second-a-broker",
    type=float,
    default=CHECKS_A_SECOND_A_BROKER,
    show_default=True,
    help="Limit.",
)
@click.option("--worker-hour-price", type=float, help="Of one worker and hour, in any currency; no default.")
@click.option("--json", "as_json", is_flag=True, help="One object.")
@click.option("--simulate", "simulated", is_flag=True, help="Simulate a day under the autoscaler.")
@click.option("--exact", is_flag=True, help="Simulate check by check, up to two million a day.")
@click.option("--sweep", "swept", is_flag=True, help="Simulate it with one knob turned at a time.")
@click.option(
    "--plot", "picture", type=click.Path(path_type=Path, dir_okay=False), help="Draw it: PNG or WebP."
)
@click.option(
    "--bursts", type=click.IntRange(0, 1000), default=6, show_default=True, help="In the simulated day."
)
@click.option("--burst-factor", type=float, default=2.0, show_default=True, help="A burst over the rhythm.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the simulated day.")
@_rule_options
def plan_command(
    *,
    as_json: bool,
    simulated: bool,
    exact: bool,
    swept: bool,
    picture: Path | None,
    bursts: int,
    burst_factor: float,
    seed: int,
    **options: Any,
) -> None:
    """Size a fleet: workers, Redis, S3 and cost; with --simulate, waits and worker-hours of a bursty day.

    What Redis keeps, and for how long, is as the DNF_ settings say.
    """
    settings = settings_in_force()
    demand, worker = _inputs(options, batch_size=settings.batch_size)
    made = plan(demand, worker, settings)
    rule = _rule(options, made)
    outcome: Outcome | None = None
    trials: list[Trial] = []
    if simulated or swept or exact or picture:
        outcome, trials = _day(
            demand,
            worker,
            rule,
            exact=exact,
            swept=swept,
            picture=picture,
            bursts=(bursts, burst_factor, seed),
        )
    if as_json:
        click.echo(json.dumps(_document(made, rule, outcome, trials, demand), indent=2))
        return
    console = Console()
    console.print(plan_table(made))
    for warning in made.warnings:
        console.print(f"[yellow]![/] {warning}", highlight=False)
    if outcome:
        console.print(day_table(summary(outcome, demand), rule))
    if trials:
        console.print(sweep_table(trials))


def _inputs(options: dict[str, Any], *, batch_size: int) -> tuple[Demand, WorkerModel]:
    try:
        demand = Demand(**{name: options[name] for name in Demand.model_fields})
    except ValidationError as error:
        raise WrongUsageError(f"--{first_fault(error).replace('_', '-', 4)}") from error
    if options["pictures_a_second"] <= 0:
        raise WrongUsageError("--pictures-a-second: must be above 0")
    if min(options["start_seconds"], options["outside_seconds"]) < 0:
        raise WrongUsageError("--start-seconds and --outside-seconds must not be negative")
    if not 0 <= options["fixed_share"] <= 1:
        raise WrongUsageError("--fixed-share: must be between 0 and 1")
    return demand, WorkerModel(
        pictures_a_second=options["pictures_a_second"],
        start_seconds=options["start_seconds"],
        batch_size=batch_size,
        fixed_share=options["fixed_share"],
        outside_seconds=options["outside_seconds"],
    )


def _rule(options: dict[str, Any], made: Plan) -> ScalingRule:
    values = {field.name: options[field.name] for field in fields(ScalingRule)}
    if values["max_replicas"] is None:
        values["max_replicas"] = max(made.workers_with_headroom, values["min_replicas"], 1)
    if values["checks_per_replica_target"] is None:
        values["checks_per_replica_target"] = float(made.checks_per_replica_target)
    try:
        return ScalingRule(**values)
    except ValueError as error:
        raise WrongUsageError(str(error)) from error


def _day(
    demand: Demand,
    worker: WorkerModel,
    rule: ScalingRule,
    *,
    exact: bool,
    swept: bool,
    picture: Path | None,
    bursts: tuple[int, float, int],
) -> "tuple[Outcome, list[Trial]]":
    if exact and demand.checks_a_day > MOST_EXACT_CHECKS:
        raise WrongUsageError(f"--exact takes at most {MOST_EXACT_CHECKS:,.0f} checks a day")
    if picture and picture.suffix.lower() not in {".png", ".webp"}:
        raise WrongUsageError("--plot: the file's name must end in .png or .webp")
    count, factor, seed = bursts
    if factor < 1:
        raise WrongUsageError("--burst-factor: must be at least 1")
    try:
        from deploy.simulation.simulation import simulate
        from deploy.simulation.sweep import sweep
        from deploy.simulation.traffic import Traffic

        if picture:
            from deploy.simulation.plots import draw_day
    except ImportError as error:
        raise click.ClickException(
            f"A simulation needs the extra `planning` ({error.name} is missing): pip install"
            " 'dnf-moderation[planning]'"
        ) from error
    arrivals = Traffic(demand.checks_a_day, demand.peak_factor, count, factor, seed).arrivals()
    outcome = simulate(arrivals, worker, rule, exact=exact)
    if picture:
        title = (
            f"{demand.checks_a_day:,.0f} checks a day, {worker.pictures_a_second:g} a second a worker,"
            f" cold start {worker.start_seconds:g} s"
        )
        try:
            draw_day(outcome, worker, title, picture)
        except OSError as error:
            raise WrongUsageError(f"--plot: {error}") from error
    return outcome, list(sweep(arrivals, worker, rule, exact=exact)) if swept else []


def _document(
    made: Plan, rule: ScalingRule, outcome: "Outcome | None", trials: "list[Trial]", demand: Demand
) -> dict[str, Any]:
    return {
        "plan": made.model_dump(),
        "autoscaling": asdict(rule),
        "day": summary(outcome, demand) if outcome else None,
        "sweep": [asdict(trial) for trial in trials],
    }
