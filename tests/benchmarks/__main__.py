"""`python -m tests.benchmarks`: what the queue costs."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from detector.bundle.files import BundleError
from detector.terminal import Console
from tests.benchmarks.api import submissions
from tests.benchmarks.detector import against_bare_detector
from tests.benchmarks.durability import disk_milliseconds, durability
from tests.benchmarks.path import costs
from tests.benchmarks.pictures import SIZES
from tests.benchmarks.workers import BenchmarkFailedError
from worker.embedded.services import EmbeddedServices
from worker.embedded.startup import EmbeddedServiceError
from worker.settings import Settings

_NAMES = {"path": "whole path", "plain": "plainest Celery task", "bare": "bare Celery"}

_json = click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Also write JSON."
)


class _Group(click.Group):
    """Tells a benchmark that failed as one line."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except (BenchmarkFailedError, BundleError, EmbeddedServiceError) as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure on a Valkey and a SeaweedFS started for it.

    The sides of a comparison take turns round by round, so that ratios hold on a busy machine.
    """


@main.command()
@click.option("--picture", "pictures", type=click.Choice(list(SIZES)), multiple=True, default=list(SIZES))
@click.option("--processes", type=click.IntRange(1, 64), multiple=True, default=[1, 2, 4], show_default=True)
@click.option("--checks", type=click.IntRange(1, 100_000), default=500, show_default=True)
@click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True)
@_json
def path(
    *, pictures: Sequence[str], processes: Sequence[int], checks: int, rounds: int, json_file: Path | None
) -> None:
    """Measure a check with a null detector, beside the plainest Celery task and beside an empty one.

    A picture of 12 megapixels has a tenth of the CHECKS.
    """
    table = Table(
        "Picture", "Processes", "Worker", "Checks/s", "to plainest", "CPU ms", "Valkey ms", "Peak MiB"
    )
    found = []
    with EmbeddedServices() as services:
        for picture in pictures:
            for count in processes:
                number = checks if picture == "512" else max(1, checks // 10)
                rows = costs(services, picture, processes=count, checks=number, rounds=rounds)
                found += rows
                # After each comparison, because the next one may be interrupted.
                _save(json_file, [asdict(row) for row in found])
                plain = next(row for row in rows if row.kind == "plain")
                for row in rows:
                    table.add_row(
                        picture,
                        str(count),
                        _NAMES[row.kind],
                        f"{row.rate:.1f}",
                        f"{row.rate_to(plain):.2f}",
                        f"{row.cpu_ms:.2f}",
                        f"{sorted(row.broker_ms)[rounds // 2]:.2f}",
                        f"{row.peak_bytes / (1 << 20):.0f}",
                    )
    Console().print(table)


@main.command(name="durability")
@click.option("--processes", type=click.IntRange(1, 64), multiple=True, default=[1, 2], show_default=True)
@click.option("--checks", type=click.IntRange(1, 100_000), default=500, show_default=True)
@click.option("--rounds", type=click.IntRange(1, 100), default=5, show_default=True)
@_json
def durability_command(*, processes: Sequence[int], checks: int, rounds: int, json_file: Path | None) -> None:
    """Measure a check with a null detector for each `appendfsync` of the broker."""
    table, found = Table("Processes", "appendfsync", "Checks/s", "CPU ms", "Valkey ms"), []
    with EmbeddedServices() as services:
        disk = disk_milliseconds(services)
        for count in processes:
            rows = durability(services, processes=count, checks=checks, rounds=rounds)
            found += rows
            _save(json_file, [asdict(row) for row in found])
            for row in rows:
                medians = (statistics.median(values) for values in (row.worker_ms, row.broker_ms))
                table.add_row(
                    str(count), row.policy, f"{row.rate:.1f}", *(f"{median:.2f}" for median in medians)
                )
    Console().print(table)
    Console().print(f"The disk needs {disk:.1f} ms for each write.")


@main.command()
@click.option("--pictures", type=click.IntRange(1, 10_000), default=32, show_default=True)
@click.option("--batch-size", type=click.IntRange(1, 512), default=16, show_default=True)
@click.option("--rounds", type=click.IntRange(1, 100), default=5, show_default=True)
@click.option("--bundle", default="default", show_default=True)
@click.option("--processes", type=click.IntRange(1, 64), multiple=True, default=[1], show_default=True)
@_json
def detector(
    *,
    pictures: int,
    batch_size: int,
    rounds: int,
    bundle: str,
    processes: Sequence[int],
    json_file: Path | None,
) -> None:
    """Measure PICTURES through the whole path beside the detector alone.

    DNF_DEVICE and DNF_COMPILE hold for both.
    """
    from detector.detector import Detector

    settings = Settings()
    loaded = Detector.load(bundle, device=settings.device, compiled=settings.compile)
    loaded.warm_up(batch_size)
    heads = ("Processes", "Measured/s", "Reference/s", "Ratio: min", "median", "max", "GPU busy")
    table, rows = Table("Measured / reference", *heads), []
    with EmbeddedServices() as services:
        for count in processes:
            row = against_bare_detector(
                services, loaded, pictures=pictures, batch_size=batch_size, rounds=rounds, processes=count
            )
            rows.append(asdict(row))
            middle = (sorted(values)[len(values) // 2] for values in (row.ours, row.reference))
            table.add_row(
                row.name,
                str(count),
                *(f"{value:.1f}" for value in middle),
                *(f"{value:.2f}" for value in row.spread()),
                f"{sum(row.gpu_busy) / len(row.gpu_busy):.0%}" if row.gpu_busy else "",
            )
            # After each, so that one that ends the run late loses no others.
            _save(json_file, rows)
    Console().print(table)


@main.command()
@click.option("--checks", type=click.IntRange(16, 100_000), default=1000, show_default=True)
@click.option("--clients", type=click.IntRange(1, 256), default=16, show_default=True)
@click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True)
@_json
def api(*, checks: int, clients: int, rounds: int, json_file: Path | None) -> None:
    """Measure submissions over HTTP beside those of the Python client, and that each has one verdict."""
    with EmbeddedServices(database=True) as services:
        rows = submissions(services, checks=checks, clients=clients, rounds=rounds)
    table = Table("Submitted by", "Clients", "per second", "p50 ms", "p99 ms", "CPU ms: client", "API")
    for row in sorted(rows, key=lambda row: row.way):
        figures = (
            row.submissions / row.seconds,
            row.p50_ms,
            row.p99_ms,
            row.client_cpu_ms,
            row.server_cpu_ms,
        )
        table.add_row(row.way, str(row.clients), *(f"{figure:.1f}" for figure in figures))
    Console().print(table)
    _save(json_file, [asdict(row) for row in rows])


def _save(file: Path | None, rows: list[dict[str, Any]]) -> None:
    if file:
        file.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(prog_name="python -m tests.benchmarks")
