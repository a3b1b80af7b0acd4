"""The evaluation's plots as PNG. matplotlib is an optional extra, imported when a plot is drawn."""

from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from detector.bundle.thresholds import Thresholds
from detector.evaluation.evaluation import SplitEvaluation
from detector.evaluation.figures import labels_of
from detector.metrics import Interval, reliability, roc
from detector.scoring import Scored

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_REAL, _GENERATED, _GREY = "#2b6cb0", "#c2410c", "#64748b"
_BASELINES = ("#7c3aed", "#0d9488", "#a16207", "#475569")
_DOTS_PER_INCH = 144


def split_plots(result: SplitEvaluation, thresholds: Thresholds) -> dict[str, bytes]:
    """Return a split's plots as PNG bytes: "roc", "reliability", "scores" and, if measured, "robustness".

    Raises ImportError if matplotlib is not installed.
    """
    plots = {
        "roc": _roc_plot(result),
        "reliability": _reliability_plot(result.scored),
        "scores": _scores_plot(result.scored, thresholds),
    }
    return plots | ({"robustness": _robustness_plot(result)} if result.curves else {})


def _roc_plot(result: SplitEvaluation) -> bytes:
    figure, axes = _square()
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8, linestyle=":")
    for (name, scored), colour in zip(result.baselines_scored.items(), _BASELINES, strict=False):
        auroc = next(row.auroc.value for row in result.comparison if row.name == name)
        axes.plot(*_roc(scored), color=colour, linewidth=1.2, label=f"{name}, {auroc:.3f}")
    own = f"this bundle, {result.overall.auroc.value:.3f}"
    axes.plot(*_roc(result.scored), color=_GENERATED, linewidth=1.8, label=own)
    axes.axvline(0.05, color=_GREY, linewidth=0.6, linestyle="--")
    axes.annotate("5 %", (0.06, 0.02), color=_GREY, fontsize=8)
    axes.set(xlabel="False positive rate", ylabel="Detection rate", title="ROC (AUROC)")
    axes.legend(loc="lower right", frameon=False)
    return _png(figure)


def _reliability_plot(scored: list[Scored]) -> bytes:
    figure, axes = _square()
    bins = reliability(np.array([item.probability for item in scored]), labels_of(scored))
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8, linestyle=":")
    largest = max(each.count for each in bins)
    axes.scatter(
        [each.probability for each in bins],
        [each.frequency for each in bins],
        s=[20 + 180 * each.count / largest for each in bins],
        color=_GENERATED,
        alpha=0.35,
        linewidths=0,
    )
    axes.plot(
        [b.probability for b in bins], [b.frequency for b in bins], color=_GENERATED, marker="o", markersize=3
    )
    for each in bins:
        place = (each.probability, each.frequency)
        axes.annotate(str(each.count), place, (7, 3), textcoords="offset points", fontsize=7, color=_GREY)
    axes.set(xlabel="Score (probability of generated)", ylabel="Share that is generated", title="Reliability")
    return _png(figure)


def _scores_plot(scored: list[Scored], thresholds: Thresholds) -> bytes:
    figure, axes = _square(limits=False)
    edges = np.linspace(0, 1, 21)
    for generated, colour, name in ((False, _REAL, "real"), (True, _GENERATED, "generated")):
        own = [item.probability for item in scored if item.generated == generated]
        weights = np.full(len(own), 1 / len(own))
        axes.hist(own, edges.tolist(), weights=weights, color=colour, alpha=0.5, label=f"{name} ({len(own)})")
    for cut, name in ((thresholds.review_from, "review"), (thresholds.generated_from, "generated")):
        axes.axvline(cut, color="#1e293b", linewidth=1, linestyle="--" if name == "review" else "-")
    axes.set_xlim(0, 1)
    axes.set_ylim(top=axes.get_ylim()[1] * 1.4)  # room for the legend
    axes.set(
        xlabel="Score (probability of generated)",
        ylabel="Share of the class",
        title="Scores: review dashed, generated solid",
    )
    axes.legend(loc="upper left", frameon=False, ncols=2)
    return _png(figure)


def _robustness_plot(result: SplitEvaluation) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.2), layout="constrained")
    panels = figure.subplots(2, 3, sharey=True)
    overall = result.overall
    for axes, curve in zip(panels.flat, result.curves, strict=True):
        strengths = [point.strength for point in curve.points]
        _band(axes, strengths, [point.auroc for point in curve.points], _GENERATED, "AUROC")
        _band(axes, strengths, [point.tpr_at_fpr_5 for point in curve.points], _REAL, "TPR at 5 % FPR")
        axes.axhline(overall.auroc.value, color=_GENERATED, linewidth=0.7, linestyle=":")
        axes.axhline(overall.tpr_at_fpr_5.value, color=_REAL, linewidth=0.7, linestyle=":")
        axes.set_title(curve.title, fontsize=10)
        axes.set_ylim(0, 1)
        axes.set_xticks(strengths, [f"{strength:g}" for strength in strengths], fontsize=8)
        # Stronger degradations are to the right, even where the number falls.
        if strengths[0] > strengths[-1]:
            axes.invert_xaxis()
        _plain(axes)
    lines, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=2, frameon=False)
    return _png(figure)


def _band(axes: "Axes", places: list[float], values: list[Interval], colour: str, name: str) -> None:
    axes.plot(places, [each.value for each in values], color=colour, marker="o", markersize=3, label=name)
    lows, highs = [each.low for each in values], [each.high for each in values]
    axes.fill_between(places, lows, highs, color=colour, alpha=0.15, linewidth=0)


def _roc(scored: list[Scored]) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.float64]], ...]:
    return roc(np.array([item.logit for item in scored]), labels_of(scored))


def _square(*, limits: bool = True) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 4.2), layout="constrained")
    axes = figure.subplots()
    if limits:
        axes.set_xlim(-0.01, 1.01)
        axes.set_ylim(-0.01, 1.01)
    _plain(axes)
    return figure, axes


def _plain(axes: "Axes") -> None:
    axes.grid(color="#e2e8f0", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _png(figure: "Figure") -> bytes:
    # A Figure created without pyplot uses Agg, which needs no display.
    file = BytesIO()
    figure.savefig(file, format="png", dpi=_DOTS_PER_INCH)
    return file.getvalue()
