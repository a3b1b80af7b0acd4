"""The evaluation's results: tables, report.json, report.html, and figures.md for a model card."""

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from io import StringIO
from pathlib import Path
from typing import Any, cast

from rich import box
from rich.table import Table

from detector.bundle.files import Bundle
from detector.evaluation.evaluation import ControlResult, PolicyShares, SplitEvaluation, StabilityResult
from detector.evaluation.figures import Figures
from detector.evaluation.plots import split_plots
from detector.metrics import Interval
from detector.scoring import Scored
from detector.terminal import Console

JSON_FILE = "report.json"
PAGE_FILE = "report.html"
FIGURES_FILE = "figures.md"
FEW_PICTURES = 50

_TEMPLATE = "report.html.j2"
_WIDEST_TABLE = 400


@dataclass(frozen=True)
class Evaluation:
    """What was measured, and how."""

    bundle: Bundle
    device: str
    dtype: str
    #: ISO 8601.
    date: str
    #: The command line as typed.
    command: str
    #: Maximum number of pictures of each split; None for all.
    limit: int | None
    splits: list[SplitEvaluation]


def write_report(evaluation: Evaluation, corpus: Path, folder: Path) -> Path:
    """Write report.json, report.html, figures.md and the plots as PNG to `folder`; return the page's path.

    Raises ImportError if matplotlib or Jinja is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(as_json(evaluation, corpus), indent=2, allow_nan=False)
    (folder / JSON_FILE).write_text(content + "\n", encoding="utf-8")
    thresholds = evaluation.bundle.manifest.thresholds
    plots = {result.split: split_plots(result, thresholds) for result in evaluation.splits}
    (folder / "plots").mkdir(exist_ok=True)
    for split, drawn in plots.items():
        for name, png in drawn.items():
            (folder / "plots" / f"{split}-{name}.png").write_bytes(png)
    (folder / FIGURES_FILE).write_text(as_markdown(evaluation), encoding="utf-8")
    page = folder / PAGE_FILE
    page.write_text(render(evaluation, plots), encoding="utf-8")
    return page


def as_markdown(evaluation: Evaluation) -> str:
    """Return the tables in Markdown, for a model card."""
    console = Console(file=StringIO(), width=_WIDEST_TABLE)
    console.print(f"`{evaluation.command}` ({evaluation.device}, {evaluation.dtype})", soft_wrap=True)
    for result in evaluation.splits:
        for table in split_tables(result):
            console.print(f"\n### {table.title}", end="")
            table.title, table.box = None, box.MARKDOWN
            console.print(table)
    text = cast("StringIO", console.file).getvalue()
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def as_json(evaluation: Evaluation, corpus: Path) -> dict[str, Any]:
    """Return all results as JSON values, with the score of each picture by its path in the corpus."""
    manifest = evaluation.bundle.manifest
    return {
        "bundle": {
            "name": manifest.name,
            "version": manifest.version,
            "digest": evaluation.bundle.digest,
            "feature": manifest.feature,
            "thresholds": manifest.thresholds.model_dump(),
        },
        "device": evaluation.device,
        "dtype": evaluation.dtype,
        "date": evaluation.date,
        "command": evaluation.command,
        "limit": evaluation.limit,
        "splits": {result.split: _split_json(result, corpus) for result in evaluation.splits},
    }


def render(evaluation: Evaluation, plots: Mapping[str, Mapping[str, bytes]]) -> str:
    """Return the page, a self-contained HTML document; `plots` are PNG bytes by split and name."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(_TEMPLATE).render(
        evaluation=evaluation,
        manifest=evaluation.bundle.manifest,
        plots={
            split: {name: base64.b64encode(png).decode() for name, png in drawn.items()}
            for split, drawn in plots.items()
        },
        few=FEW_PICTURES,
    )


def _split_json(result: SplitEvaluation, corpus: Path) -> dict[str, Any]:
    return {
        "overall": asdict(result.overall),
        "condition_pictures": result.condition_pictures,
        "as_is_auroc": asdict(result.as_is_auroc),
        "families": [asdict(row) for row in result.families],
        "novelties": [asdict(row) for row in result.novelties],
        "controls": [asdict(control) for control in result.controls],
        "largest_shift": _shift_json(result.largest_shift),
        "largest_shift_by_encoding": _shift_json(result.largest_shift_by_encoding),
        "curves": [asdict(curve) for curve in result.curves],
        "stability": asdict(result.stability) if result.stability else None,
        "comparison": [asdict(row) for row in result.comparison],
        "unreadable": [
            {"path": _relative(item.sample.path, corpus), "reason": item.reason, "detail": item.detail}
            for item in result.unreadable
        ],
        "pictures": [_picture_json(item, corpus) for item in result.scored],
        "baseline_pictures": {
            name: [_picture_json(item, corpus) for item in scored]
            for name, scored in result.baselines_scored.items()
        },
    }


def _shift_json(control: ControlResult) -> dict[str, Any]:
    return {"control": control.name, "shift": asdict(control.shift)}


def _picture_json(item: Scored, corpus: Path) -> dict[str, Any]:
    return {
        "path": _relative(item.path, corpus),
        "family": item.family,
        "label": "generated" if item.generated else "real",
        "logit": item.logit,
        "probability": item.probability,
    }


def _relative(path: Path, corpus: Path) -> str:
    return path.relative_to(corpus).as_posix() if path.is_relative_to(corpus) else path.as_posix()


def split_tables(result: SplitEvaluation) -> list[Table]:
    """Return the tables of a split for a terminal: families, controls, and what else was measured."""
    tables = [_family_table(result), _controls_table(result)]
    if result.comparison:
        tables.append(_comparison_table(result))
    if result.curves:
        tables.append(_curves_table(result))
    if result.stability:
        tables.append(_stability_table(result.split, result.stability))
    return tables


def _family_table(result: SplitEvaluation) -> Table:
    overall = result.overall
    table = _table(
        f"{result.split}: {overall.real} photographs, {overall.generated} generated pictures",
        ("Family", "Pictures", "AUROC", "95 %", "AP", "Bal. acc.", "Acc. real", "Acc. gen."),
        ("TPR@1%", "TPR@5%", "ECE", "Flagged", "Detected", "Review", "Seen in training"),
    )
    for row in [*result.families, *result.novelties]:
        f = row.figures
        if row in result.novelties[:1]:
            table.add_section()
        # A cell that would repeat a figure of the other class shows a dash.
        if row.is_generated:
            accuracies = "-", f"{f.accuracy_on_generated.value:.3f}"
            outcomes = "-", f"{f.detection_rate.value:.1%}", f"{f.generated_reviewed.value:.1%}"
        else:
            accuracies = f"{f.accuracy_on_real.value:.3f}", "-"
            outcomes = f"{f.false_positive_rate.value:.1%}", "-", f"{f.real_reviewed.value:.1%}"
        table.add_row(
            row.family, str(row.pictures), *_figure_cells(f, *accuracies), *outcomes, row.seen or "-"
        )
    table.add_section()
    accuracies = f"{overall.accuracy_on_real.value:.3f}", f"{overall.accuracy_on_generated.value:.3f}"
    table.add_row(
        "all",
        str(overall.real + overall.generated),
        *_figure_cells(overall, *accuracies),
        f"{overall.false_positive_rate.value:.1%}",
        f"{overall.detection_rate.value:.1%}",
        f"{overall.reviewed:.1%}",
    )
    return table


def _figure_cells(f: Figures, accuracy_on_real: str, accuracy_on_generated: str) -> list[str]:
    return [
        f"{f.auroc.value:.3f}",
        _range(f.auroc),
        f"{f.average_precision.value:.3f}",
        f"{f.balanced_accuracy.value:.3f}",
        accuracy_on_real,
        accuracy_on_generated,
        f"{f.tpr_at_fpr_1.value:.3f}",
        f"{f.tpr_at_fpr_5.value:.3f}",
        f"{f.calibration_error.value:.3f}",
    ]


def _controls_table(result: SplitEvaluation) -> Table:
    table = _table(
        f"{result.split}: format controls, {result.condition_pictures} pictures",
        ("Control", "AUROC", "95 %", "Shift", "95 %"),
    )
    table.add_row("as_is", f"{result.as_is_auroc.value:.3f}", _range(result.as_is_auroc), "-", "")
    for control in result.controls:
        auroc = f"{control.auroc.value:.3f}", _range(control.auroc)
        table.add_row(control.name, *auroc, f"{control.shift.value:+.3f}", _signed_range(control.shift))
    return table


def _comparison_table(result: SplitEvaluation) -> Table:
    table = _table(
        f"{result.split}: the same classifier on other inputs",
        ("Input", "AUROC", "95 %", "TPR@5%", "Largest shift", "Margin of this bundle", "95 %"),
    )
    for row in result.comparison:
        margin = (f"{row.margin.value:+.3f}", _signed_range(row.margin)) if row.margin else ("-", "")
        cells = f"{row.auroc.value:.3f}", _range(row.auroc), f"{row.tpr_at_fpr_5.value:.3f}"
        table.add_row(row.name, *cells, f"{row.largest_shift:.3f}", *margin)
    return table


def _curves_table(result: SplitEvaluation) -> Table:
    table = _table(
        f"{result.split}: robustness", ("Degradation", "Strength", "AUROC", "95 %", "TPR@5%", "95 %")
    )
    for curve in result.curves:
        for point in curve.points:
            auroc = f"{point.auroc.value:.3f}", _range(point.auroc)
            tpr = f"{point.tpr_at_fpr_5.value:.3f}", _range(point.tpr_at_fpr_5)
            table.add_row(curve.title, f"{point.strength:g}", *auroc, *tpr)
    return table


def _stability_table(split: str, stability: StabilityResult) -> Table:
    table = _table(
        f"{split}: stability check, {stability.scores} scores a picture",
        ("Policy", "Photographs flagged", "Photographs to review"),
        ("Generated detected", "Generated to review", "To review"),
    )
    for name, shares in (("without", stability.without), ("with the check", stability.checked)):
        table.add_row(name, *_share_cells(shares))
    return table


def _share_cells(shares: PolicyShares) -> list[str]:
    # In the order of the fields, as in the heading.
    return [f"{getattr(shares, field.name).value:.1%}" for field in fields(shares)]


def _table(title: str, *columns: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left")
    for index, name in enumerate(name for group in columns for name in group):
        table.add_column(name, justify="right" if index else "left")
    return table


def _range(interval: Interval) -> str:
    return f"{interval.low:.3f}-{interval.high:.3f}"


def _signed_range(interval: Interval) -> str:
    return f"{interval.low:+.3f} to {interval.high:+.3f}"
