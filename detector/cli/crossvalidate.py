"""dnf-detector crossvalidate."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.table import Table

from detector.bundle.manifest import Feature
from detector.cli.errors import WrongUsageError
from detector.cli.sections import SectionedCommand, section
from detector.cli.training_options import (
    CLASSIFIER_TRAINING,
    FOLDER,
    MACHINE,
    bank_folder_option,
    classifier_recipe,
    corpus_argument,
    estimator_of,
    feature_option,
    layout_option,
    readable_samples,
    size_option,
    split_option,
    timesteps_option,
    unet_option,
    views_option,
    width_option,
)
from detector.corpus.corpus import CorpusRejectedError
from detector.corpus.folds import LEAVE_OUT, LeaveOut
from detector.detector import Dtype
from detector.terminal import Console, echo, shown

if TYPE_CHECKING:
    from detector.crossvalidation import Crossvalidation, Margin
    from detector.metrics import Interval

_PIPE_WIDTH = 140
_TABLES_FILE = "crossvalidation.md"


@click.command(
    cls=SectionedCommand,
    context_settings={"show_default": True},
    epilog="""\b
Examples:
  dnf-detector crossvalidate CORPUS --feature npr --max-steps 1000 --out trials/npr
  dnf-detector crossvalidate CORPUS --split train --split more --unet unet --minutes 20 --out trials/dnf
""",
)
@corpus_argument
@section(
    "Folds",
    click.option(
        "--leave-out",
        type=click.Choice(LEAVE_OUT),
        default="generators",
        help="generators: all of a generator and of a photo source; sources: a generator may remain.",
    ),
    click.option("--folds", "count", type=click.IntRange(2, 20), default=4, help="Number of folds."),
)
@section("Corpus", layout_option, split_option)
@section(
    "Output",
    click.option("--out", required=True, type=FOLDER, help="Folder of folds and report, also to resume."),
    bank_folder_option,
    click.option(
        "--ensemble",
        "trials",
        multiple=True,
        type=FOLDER,
        help="Folder of a finished trial; of two or more the ensemble is measured, and nothing is trained.",
    ),
    click.option(
        "--against", multiple=True, type=FOLDER, help="Folder of a trial to compare with; may be repeated."
    ),
)
@section(
    "Network", feature_option, unet_option, timesteps_option, width_option, size_option(128), views_option
)
@section("Training", *CLASSIFIER_TRAINING)
@section(
    "Machine",
    *MACHINE,
    click.option(
        "--dtype",
        type=click.Choice(["auto", "float32", "bfloat16"]),
        default="auto",
        help="Of the scores; auto is bfloat16 on CUDA.",
    ),
)
def crossvalidate(
    corpus: Path,
    *,
    leave_out: LeaveOut,
    count: int,
    out: Path,
    feature: Feature,
    unet_folder: str | None,
    dtype: Dtype,
    bank_folder: Path | None,
    trials: tuple[Path, ...],
    against: tuple[Path, ...],
    **options: Any,
) -> None:
    """Measure a recipe on generators and photo sources that it was not trained on.

    The budget is that of each fold. A U-Net is given, and must not have been trained on the corpus.
    """
    from detector.crossvalidation import CrossvalidationError, crossvalidate_ensemble, margin
    from detector.crossvalidation import crossvalidate as run
    from detector.training.assembly import FusionRejectedError

    unet = None if trials else estimator_of(feature, unet_folder)
    recipe = classifier_recipe(feature, options)
    samples = readable_samples(corpus, options["splits"], options["layout"])
    try:
        if trials:
            result = crossvalidate_ensemble(samples, trials, out, device=options["device"], dtype=dtype)
        else:
            result = run(
                samples, unet, recipe, out, count=count, leave_out=leave_out, dtype=dtype, bank=bank_folder
            )
        margins = {folder.name: margin(result, folder) for folder in against}
    except (CorpusRejectedError, CrossvalidationError, FusionRejectedError) as error:
        raise WrongUsageError(str(error)) from error
    # Rich would fold the tables to 80 columns in a pipe.
    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    for table in _tables(result, margins):
        console.print(table)
    with (out / _TABLES_FILE).open("w", encoding="utf-8") as file:
        page = Console(file=file, width=_PIPE_WIDTH)
        for table in _tables(result, margins):
            table.title, table.box = None, box.MARKDOWN
            page.print(table)
    echo(f"{out}: {_TABLES_FILE} has these tables, crossvalidation.json every figure and score")


def _tables(result: "Crossvalidation", margins: "dict[str, Margin]") -> list[Table]:
    figures, cost = result.figures, result.cost
    new = "new generators" if result.leave_out == "generators" else "new sources"
    summary = _table(
        f"{new}: {sum(fold.held_out for fold in result.folds)} pictures", "Figure", "Value", "95 %"
    )
    summary.add_row("AUROC, pooled", *_cells(figures.pooled))
    summary.add_row(f"the same, interval over {result.leave_out}", *_cells(figures.pooled_by_unit))
    if figures.matched:
        summary.add_row("AUROC, matched in content", *_cells(figures.matched))
    for content in figures.contents:
        title = f"  {shown(content.content)}: {content.real} real, {content.generated} generated"
        summary.add_row(title, *_cells(content.auroc))
    summary.add_row("TPR at 5 % FPR", *_cells(figures.tpr_at_fpr_5))
    summary.add_row("ECE, balanced", *_cells(figures.calibration_error))
    summary.add_row(f"GFLOP a picture, {cost.views} views", f"{cost.gflop:.1f}", "")
    summary.add_row("Weights, MB", f"{cost.weight_bytes / 1e6:.1f}", "")
    folds = _table("Folds", "Fold", "Trained on", "Held out", "Steps", "Minutes", "Validation", "AUROC")
    for number, fold in enumerate(result.folds, start=1):
        counts = str(number), str(fold.training), str(fold.held_out), str(fold.steps), f"{fold.minutes:.1f}"
        known = "-" if fold.validation_auroc is None else f"{fold.validation_auroc:.3f}"
        folds.add_row(*counts, known, f"{fold.auroc:.3f}")
    families = _table(
        "Families", "Family", "Label", "Left out with", "Fold", "Pictures", "AUROC", "95 %", "Matched"
    )
    for row in figures.families:
        families.add_row(
            shown(row.family),
            "generated" if row.is_generated else "real",
            shown(row.unit),
            str(row.fold),
            str(row.pictures),
            *_cells(row.auroc),
            "-" if row.matched is None else f"{row.matched:.3f}",
        )
    if not margins:
        return [summary, folds, families]
    compared = _table("Margins on the same pictures", "Against", "Pooled", "95 %", "Matched", "95 %")
    for name, margin in margins.items():
        matched = _signed(margin.matched) if margin.matched else ("-", "")
        compared.add_row(shown(name), *_signed(margin.pooled), *matched)
    return [summary, compared, folds, families]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left")
    return table


def _cells(interval: "Interval") -> tuple[str, str]:
    return f"{interval.value:.3f}", f"{interval.low:.3f}-{interval.high:.3f}"


def _signed(interval: "Interval") -> tuple[str, str]:
    return f"{interval.value:+.3f}", f"{interval.low:+.3f} to {interval.high:+.3f}"
