"""`python -m tests.benchmarks`: what the queue costs."""

import json
from dataclasses import asdict
from pathlib import Path

import click
from rich.table import Table

from detector.bundle.files import BundleError
from detector.terminal import Console
from tests.benchmarks.queue import BenchmarkFailedError, against_bare_celery, against_bare_detector
from worker.embedded.services import EmbeddedServices
from worker.embedded.startup import EmbeddedServiceError


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--checks", type=click.IntRange(1, 100_000), default=500, show_default=True)
@click.option("--pictures", type=click.IntRange(1, 10_000), default=32, show_default=True)
@click.option("--batch-size", type=click.IntRange(1, 512), default=16, show_default=True)
@click.option("--rounds", type=click.IntRange(1, 100), default=5, show_default=True)
@click.option("--bundle", default="default", show_default=True, help="The detector of the second row.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Also write JSON.")
def main(
    *, checks: int, pictures: int, batch_size: int, rounds: int, bundle: str, json_file: Path | None
) -> None:
    """Measure what the queue costs, on a Valkey and a SeaweedFS started for it.

    Compares CHECKS with a null detector with as many Celery tasks that do nothing, and PICTURES through the
    whole path with the detector alone. The two sides of a comparison take turns round by round, so that the
    ratios hold on a busy machine.
    """
    try:
        with EmbeddedServices() as services:
            rows = [
                against_bare_celery(services, checks=checks, rounds=rounds),
                against_bare_detector(
                    services, bundle, pictures=pictures, batch_size=batch_size, rounds=rounds
                ),
            ]
    except (BenchmarkFailedError, BundleError, EmbeddedServiceError) as error:
        raise click.ClickException(str(error)) from error
    table = Table("Measured / reference", "Measured/s", "Reference/s", "Ratio: min", "median", "max")
    for row in rows:
        middle = (sorted(values)[len(values) // 2] for values in (row.ours, row.reference))
        table.add_row(
            row.name, *(f"{value:.1f}" for value in middle), *(f"{value:.2f}" for value in row.spread())
        )
    Console().print(table)
    if json_file:
        json_file.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(prog_name="python -m tests.benchmarks")
