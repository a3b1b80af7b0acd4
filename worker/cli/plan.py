"""dnf-worker plan: the fleet that a load needs."""

from collections.abc import Callable
from typing import Any

import click
from pydantic import ValidationError
from rich.table import Table

from detector.terminal import Console, echo, echo_json
from worker.cli.errors import WrongUsageError, current_settings, reported_errors
from worker.contract.messages import first_fault
from worker.operations.capacity import CHECKS_PER_SECOND_PER_BROKER, Demand, Plan, WorkerModel, plan
from worker.settings import Settings

_UNIT_STEP = 1000
# For the command to the broker.
_LIMIT_SECONDS = 5.0


def load_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that describe the load and one worker, read by `demand_and_worker`."""
    for option in reversed(
        (
            click.option("--checks-per-day", type=float, required=True, help="For example 1e6 or 250000."),
            click.option(
                "--pictures-per-second",
                type=float,
                help="Throughput of one worker.",
            ),
            click.option(
                "--peak-factor", type=float, default=2.0, show_default=True, help="Peak rate / mean rate."
            ),
            click.option(
                "--start-seconds",
                type=float,
                default=90.0,
                show_default=True,
                help="Time from a pod's creation to its first check.",
            ),
            click.option(
                "--fixed-share",
                type=float,
                default=0.0,
                show_default=True,
                help="Share of a full batch's time that a batch of one takes too: 0 on a CPU, towards 1 on a"
                " GPU.",
            ),
            click.option(
                "--overhead-seconds",
                type=float,
                default=0.1,
                show_default=True,
                help="Time of a check outside of its batch: fetch, decode, publish.",
            ),
            click.option(
                "--price-per-worker-hour", type=float, help="In any currency; without it no cost is shown."
            ),
        )
    ):
        command = option(command)
    return command


@click.command("plan", epilog="\b\nExample:\n  dnf-worker plan --checks-per-day 1e6 --pictures-per-second 3")
@load_options
@click.option(
    "--headroom", type=float, default=0.25, show_default=True, help="Spare capacity, as a share of the peak."
)
@click.option("--picture-bytes", type=float, default=1e6, show_default=True, help="Mean size of an upload.")
@click.option(
    "--checks-per-second-per-broker",
    type=float,
    default=CHECKS_PER_SECOND_PER_BROKER,
    show_default=True,
    help="Limit of one Redis server.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def plan_command(*, as_json: bool, **options: Any) -> None:
    """Size a fleet: workers, Redis memory, S3 reads and cost.

    Without --pictures-per-second the workers' own rate is taken, which they measure at their start and keep
    in Redis. How much Redis keeps, and for how long, is taken from the DNF_ settings.
    """
    settings = current_settings()
    if options["pictures_per_second"] is None:
        options["pictures_per_second"] = _measured_rate(settings)
    demand, worker = demand_and_worker(options, batch_size=settings.batch_size)
    result = plan(demand, worker, settings)
    if as_json:
        echo_json(result.model_dump(mode="json"), indent=2)
        return
    console = Console()
    console.print(_table(result))
    for warning in result.warnings:
        console.print(f"[yellow]![/] {warning}", highlight=False)


def _measured_rate(settings: Settings) -> float:
    """Return the fleet's rate of one worker, and name it. Raises `WrongUsageError` when there is none."""
    from worker.broker.connection import connect
    from worker.process.heartbeat import measured_rate

    with reported_errors(), connect(settings.broker, timeout_seconds=_LIMIT_SECONDS, retries=0) as broker:
        rate = measured_rate(broker)
    if rate is None:
        raise WrongUsageError(
            "no worker has measured its rate yet: give --pictures-per-second (see `dnf-detector bench`)"
        )
    echo(f"The workers' own rate: {rate:.2f} pictures per second each", err=True)
    return rate


def demand_and_worker(options: dict[str, Any], *, batch_size: int) -> tuple[Demand, WorkerModel]:
    """Return the models that the options describe. Raises `WrongUsageError`."""
    try:
        demand = Demand(**{name: options[name] for name in Demand.model_fields if name in options})
    except ValidationError as error:
        name, _, problem = first_fault(error).partition(":")
        raise WrongUsageError(f"--{name.replace('_', '-')}:{problem}") from error
    if options["pictures_per_second"] is None:
        raise WrongUsageError("--pictures-per-second is missing; `dnf-detector bench` measures it")
    if options["pictures_per_second"] <= 0:
        raise WrongUsageError("--pictures-per-second: must be above 0")
    if min(options["start_seconds"], options["overhead_seconds"]) < 0:
        raise WrongUsageError("--start-seconds and --overhead-seconds must not be negative")
    if not 0 <= options["fixed_share"] <= 1:
        raise WrongUsageError("--fixed-share: must be between 0 and 1")
    return demand, WorkerModel(
        pictures_per_second=options["pictures_per_second"],
        start_seconds=options["start_seconds"],
        batch_size=batch_size,
        fixed_share=options["fixed_share"],
        overhead_seconds=options["overhead_seconds"],
    )


def _table(result: Plan) -> Table:
    table = Table("Needed", "How much")
    table.add_row("Checks per second: mean, peak", f"{result.mean_rate:,.1f}, {result.peak_rate:,.1f}")
    table.add_row(
        "Workers: mean, peak, peak with headroom",
        f"{result.workers_at_mean:,}, {result.workers_at_peak:,}, {result.workers_with_headroom:,}",
    )
    table.add_row(
        "Backlog if the peak comes at once",
        f"{result.checks_waiting_while_workers_start:,} checks, drained in"
        f" {result.backlog_drain_seconds:,.0f} s",
    )
    table.add_row("Redis servers", f"{result.brokers:,}")
    for name, size in result.redis.model_dump().items():
        table.add_row(f"Redis memory: {name.replace('_', ' ')}", _size(size))
    table.add_row(
        "At the peak a consumer group may be away for",
        f"{result.verdict_stream_full_after_seconds:,.0f} s, then workers pause",
    )
    table.add_row(
        "S3 reads and bytes per second at the peak",
        f"{result.s3_reads_per_second_at_peak:,.1f} and {_size(result.s3_bytes_per_second_at_peak)}",
    )
    table.add_row(
        "S3 reads and bytes per day", f"{result.s3_reads_per_day:,.0f} and {_size(result.s3_bytes_per_day)}"
    )
    table.add_row("S3 writes of thumbnails per day", f"{result.s3_writes_per_day:,.0f}")
    table.add_row("autoscaling.checksPerReplicaTarget", f"{result.checks_per_replica_target}")
    if result.cost_per_million_fully_busy is not None:
        table.add_row(
            "Cost per million checks, workers never idle", f"{result.cost_per_million_fully_busy:,.2f}"
        )
        table.add_row(
            "Cost per million checks, fixed fleet with headroom",
            f"{result.cost_per_million_fixed_fleet:,.2f}",
        )
    return table


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB", "TB", "PB"):
        if count < _UNIT_STEP or unit == "PB":
            break
        count /= _UNIT_STEP
    return f"{count:,.1f} {unit}" if unit != "bytes" else f"{count:.0f} bytes"
