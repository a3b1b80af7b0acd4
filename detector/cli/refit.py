"""dnf-detector refit: a new operating point from the decisions of moderators."""

import sys
from pathlib import Path

import click
from rich.table import Table

from detector.bundle.files import resolve
from detector.bundle.refit import Rates, RefitRefusedError, read_decisions, write_refitted
from detector.bundle.refit import refit as refit_bundle
from detector.bundle.thresholds import Thresholds
from detector.cli.errors import WrongUsageError, plain_errors
from detector.terminal import Console, echo

_PIPE_WIDTH = 120


@click.command(epilog="Example: dnf-detector refit default decisions.jsonl --max-fpr 0.01 --out refitted")
@click.argument("bundle")
@click.argument("decisions", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--max-fpr",
    type=click.FloatRange(0, 0.5, min_open=True),
    default=0.01,
    show_default=True,
    help="Budget: the share of photographs that may be flagged as generated.",
)
@click.option(
    "--max-not-real",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.10,
    show_default=True,
    help="Budget: the share of photographs that may be flagged or go to review.",
)
@click.option(
    "--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="New folder of the bundle."
)
@click.option("--version", help="The new bundle's version; by default the old one's with -refit.")
def refit(
    bundle: str, decisions: Path, *, max_fpr: float, max_not_real: float, out: Path, version: str | None
) -> None:
    """Fit a bundle's calibration and thresholds to decisions, and write it as a new bundle.

    DECISIONS has one event image.decision.v1 a line. The budgets are those of upper 95 % bounds: 1 % needs at
    least 299 photographs. The networks stay as they are. Try the new bundle as a shadow (DNF_SHADOW_BUNDLE)
    before it serves.
    """
    try:
        with plain_errors():
            old = resolve(bundle)
            result = refit_bundle(old, read_decisions(decisions), max_fpr=max_fpr, max_not_real=max_not_real)
            new = write_refitted(
                old, result, out, version=version or f"{old.manifest.version}-refit", max_fpr=max_fpr
            )
    except RefitRefusedError as error:
        raise WrongUsageError(f"{error.reason}: {error}") from error
    except OSError as error:
        raise WrongUsageError(f"{error.filename}: {error.strerror}") from error
    table = Table(
        "Thresholds", "Photographs flagged", "Photographs flagged or in review", "Generated detected"
    )
    table.add_row(*_cells("old", old.manifest.thresholds, result.before))
    table.add_row(*_cells("new", result.thresholds, result.after))
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(table)
    echo(f"decisions used: {result.photographs} photographs, {result.generated} generated pictures")
    if result.unused:
        echo("not used: " + ", ".join(f"{count} {reason}" for reason, count in result.unused.items()))
    echo(f"{new.folder}: digest {new.digest}")


def _cells(name: str, thresholds: Thresholds, rates: Rates) -> tuple[str, ...]:
    return (
        f"{name}: {thresholds.review_from:.3f}, {thresholds.generated_from:.3f}",
        f"{rates.flagged:.2%} (at most {rates.flagged_bound:.2%})",
        f"{rates.not_real:.2%} (at most {rates.not_real_bound:.2%})",
        f"{rates.detected:.1%}",
    )
