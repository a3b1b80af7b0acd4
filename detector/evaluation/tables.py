"""The evaluation's tables for a terminal."""

from rich.table import Table

from detector.evaluation.evaluation import PolicyShares, SplitEvaluation, StabilityResult
from detector.evaluation.figures import Figures
from detector.metrics import Interval


def split_tables(result: SplitEvaluation) -> list[Table]:
    """Return the tables of what was measured on a split, families first."""
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
        ("TPR@1%", "TPR@5%", "ECE", "Accused", "Found", "Review"),
    )
    for row in result.families:
        f = row.figures
        real, generated = f"{f.accuracy_on_reals.value:.3f}", f"{f.accuracy_on_generated.value:.3f}"
        accused, found = f"{f.real_accused.value:.1%}", f"{f.generated_found.value:.1%}"
        # What would only repeat the other class is left out.
        if row.is_generated:
            cells = _figure_cells(f, "-", generated), "-", found, f"{f.generated_reviewed.value:.1%}"
        else:
            cells = _figure_cells(f, real, "-"), accused, "-", f"{f.real_reviewed.value:.1%}"
        table.add_row(row.family, str(row.pictures), *cells[0], *cells[1:])
    table.add_section()
    accuracies = f"{overall.accuracy_on_reals.value:.3f}", f"{overall.accuracy_on_generated.value:.3f}"
    table.add_row(
        "all",
        str(overall.real + overall.generated),
        *_figure_cells(overall, *accuracies),
        f"{overall.real_accused.value:.1%}",
        f"{overall.generated_found.value:.1%}",
        f"{overall.reviewed:.1%}",
    )
    return table


def _figure_cells(f: Figures, on_reals: str, on_generated: str) -> list[str]:
    return [
        f"{f.auroc.value:.3f}",
        _range(f.auroc),
        f"{f.average_precision.value:.3f}",
        f"{f.balanced_accuracy.value:.3f}",
        on_reals,
        on_generated,
        f"{f.tpr_at_fpr_1.value:.3f}",
        f"{f.tpr_at_fpr_5.value:.3f}",
        f"{f.calibration_error.value:.3f}",
    ]


def _controls_table(result: SplitEvaluation) -> Table:
    table = _table(
        f"{result.split}: format controls, {result.altered_pictures} pictures",
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
            found = f"{point.tpr_at_fpr_5.value:.3f}", _range(point.tpr_at_fpr_5)
            table.add_row(curve.title, f"{point.strength:g}", *auroc, *found)
    return table


def _stability_table(split: str, stability: StabilityResult) -> Table:
    table = _table(
        f"{split}: stability check, {stability.time_ratio:.1f} times the time",
        ("Policy", "Reals accused", "Reals to review", "Generated found", "Generated to review", "To review"),
    )
    for name, shares in (("without", stability.without), ("with the check", stability.checked)):
        table.add_row(name, *_share_cells(shares))
    return table


def _share_cells(shares: PolicyShares) -> list[str]:
    listed = (
        *(shares.real_accused, shares.real_reviewed, shares.generated_found),
        *(shares.generated_reviewed, shares.reviewed),
    )
    return [f"{each.value:.1%}" for each in listed]


def _table(title: str, *columns: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left")
    for index, name in enumerate(name for group in columns for name in group):
        table.add_column(name, justify="right" if index else "left")
    return table


def _range(interval: Interval) -> str:
    return f"{interval.low:.3f}-{interval.high:.3f}"


def _signed_range(interval: Interval) -> str:
    return f"{interval.low:+.3f} to {interval.high:+.3f}"
