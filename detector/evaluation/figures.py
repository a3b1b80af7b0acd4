"""Figures of a labelled set of scored pictures: overall and by family."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from detector.bundle.thresholds import Thresholds
from detector.corpus.origins import Seen
from detector.metrics import Counts, Interval, Labels, Ranking, Scores, calibration_errors, intervals, share
from detector.policy import VerdictName, decide
from detector.scoring import Scored

_MIDDLE = 0.5
_NOVELTIES: dict[str, tuple[Seen, ...]] = {
    "new source of a known generator": ("generator",),
    "new generator": ("source", "neither"),
}


@dataclass(frozen=True)
class Figures:
    """Figures over a set of pictures, in 0..1, each with its 95 % interval.

    Shares of one class have Wilson's interval, the others a bootstrap interval, stratified by class.
    """

    #: Numbers of pictures.
    real: int
    generated: int
    auroc: Interval
    average_precision: Interval
    #: Accuracies are those at a probability of one half.
    balanced_accuracy: Interval
    accuracy_on_real: Interval
    accuracy_on_generated: Interval
    #: Detection rates at a false positive rate of at most 1 and 5 %, the threshold chosen on this set.
    tpr_at_fpr_1: Interval
    tpr_at_fpr_5: Interval
    #: Expected calibration error on the set as it is, and with both classes at the same weight.
    calibration_error: Interval
    balanced_calibration_error: Interval
    #: At the bundle's thresholds: photographs flagged as generated, or sent to review.
    false_positive_rate: Interval
    real_reviewed: Interval
    #: At the bundle's thresholds: generated pictures detected, or sent to review.
    detection_rate: Interval
    generated_reviewed: Interval

    @property
    def reviewed(self) -> float:
        """The share of all pictures that goes to review, 0..1."""
        real, generated = self.real_reviewed.value, self.generated_reviewed.value
        return (real * self.real + generated * self.generated) / (self.real + self.generated)

    def rounded(self) -> dict[str, float]:
        """Return the counts and values by name, rounded to three decimals, with the AUROC's interval."""
        flat: dict[str, float] = {}
        for field in fields(self):
            figure = getattr(self, field.name)
            flat[field.name] = round(figure.value, 3) if isinstance(figure, Interval) else figure
        return flat | {"auroc_low": round(self.auroc.low, 3), "auroc_high": round(self.auroc.high, 3)}


@dataclass(frozen=True)
class FamilyFigures:
    """The figures of one family of `pictures` against all pictures of the other class."""

    family: str
    is_generated: bool
    pictures: int
    figures: Figures
    #: What of the family the training saw; None where that is unknown.
    seen: Seen | None = None


def labels_of(scored: Sequence[Scored]) -> Labels:
    """Return the labels (N,) of scored pictures: 1 for generated."""
    return np.array([int(item.generated) for item in scored], dtype=np.int64)


def ranking_of(scored: Sequence[Scored]) -> Ranking:
    """Return the ranking of scored pictures by their logits. Raises ValueError when a class is missing."""
    return Ranking(np.array([item.logit for item in scored]), labels_of(scored))


def figures(scored: Sequence[Scored], thresholds: Thresholds) -> Figures:
    """Return the figures of scored pictures. Raises ValueError when a class is missing."""
    labels = labels_of(scored)
    ranking = ranking_of(scored)
    probabilities = np.array([item.probability for item in scored])
    correct = (probabilities >= _MIDDLE) == (labels == 1)
    real, generated = labels == 0, labels == 1
    measured = intervals(
        {
            "auroc": ranking.auroc,
            "average_precision": ranking.average_precision,
            "balanced_accuracy": lambda counts: _balanced_accuracy(correct, labels, counts),
            "tpr_at_fpr_1": lambda counts: ranking.tpr_at_fpr(counts, 0.01),
            "tpr_at_fpr_5": lambda counts: ranking.tpr_at_fpr(counts, 0.05),
            "calibration_error": lambda counts: calibration_errors(probabilities, labels, counts),
            "balanced_calibration_error": lambda counts: calibration_errors(
                probabilities, labels, counts, balanced=True
            ),
        },
        labels,
    )
    return Figures(
        real=int(real.sum()),
        generated=int(generated.sum()),
        accuracy_on_real=share(int(correct[real].sum()), int(real.sum())),
        accuracy_on_generated=share(int(correct[generated].sum()), int(generated.sum())),
        **measured,
        **policy_shares(labels, [decide(item.probability, thresholds, item.doubt) for item in scored]),
    )


def family_figures(
    scored: Sequence[Scored], thresholds: Thresholds, seen: Mapping[str, Seen] | None = None
) -> list[FamilyFigures]:
    """Return the figures by family, generators first, then sources of photographs, each sorted by name.

    A generator is measured against all photographs, a source of photographs against all generated pictures.
    `seen` says by family what of it the training saw.
    """
    families = sorted({(item.generated, item.family) for item in scored}, key=lambda f: (not f[0], f[1]))
    return [
        FamilyFigures(
            family,
            generated,
            sum(item.generated == generated and item.family == family for item in scored),
            figures(
                [item for item in scored if item.generated != generated or item.family == family], thresholds
            ),
            (seen or {}).get(family),
        )
        for generated, family in families
    ]


def novelty_figures(
    scored: Sequence[Scored], thresholds: Thresholds, seen: Mapping[str, Seen]
) -> list[FamilyFigures]:
    """Return the figures of new sources of known generators, and of new generators, against all photographs.

    A row without pictures is left out.
    """
    rows: list[FamilyFigures] = []
    for title, kinds in _NOVELTIES.items():
        own = [item for item in scored if item.generated and seen[item.family] in kinds]
        if own:
            photographs = [item for item in scored if not item.generated]
            rows.append(FamilyFigures(title, True, len(own), figures([*own, *photographs], thresholds)))  # noqa: FBT003
    return rows


def policy_shares(labels: Labels, verdicts: Sequence[VerdictName]) -> dict[str, Interval]:
    """Return the shares of verdicts (N,) within each class of `labels` (N,), by their names in `Figures`."""
    decided = np.array(verdicts)

    def of(label: int, verdict: VerdictName) -> Interval:
        verdicts_of_class = decided[labels == label]
        return share(int((verdicts_of_class == verdict).sum()), len(verdicts_of_class))

    return {
        "false_positive_rate": of(0, "generated"),
        "real_reviewed": of(0, "review"),
        "detection_rate": of(1, "generated"),
        "generated_reviewed": of(1, "review"),
    }


def _balanced_accuracy(correct: NDArray[np.bool_], labels: Labels, counts: Counts) -> Scores:
    shares = [counts[:, labels == label] @ correct[labels == label] for label in (0, 1)]
    sizes = [counts[:, labels == label].sum(axis=1) for label in (0, 1)]
    return np.asarray((shares[0] / sizes[0] + shares[1] / sizes[1]) / 2)
