"""The figures of a labelled set of scored pictures: over all, and family by family."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from detector.bundle.calibration import Thresholds
from detector.evaluation.scoring import Scored
from detector.metrics import Counts, Interval, Labels, Ranking, Scores, calibration_errors, intervals, share
from detector.policy import VerdictName, decide

_MIDDLE = 0.5


@dataclass(frozen=True)
class Figures:
    """The figures over a set of pictures, in 0..1, each with its interval; `real` and `generated` count them.

    Shares of one class have Wilson's interval, the others a bootstrap interval, each class resampled.
    Accuracies take a probability of one half as the cut. `real_accused` is the share of photographs called
    generated at the bundle's thresholds, `generated_found` that of generated pictures called so; the
    `reviewed` ones are the shares sent to a person. `calibration_error` takes the set as it is,
    `balanced_calibration_error` weighs both classes alike.
    """

    real: int
    generated: int
    auroc: Interval
    average_precision: Interval
    balanced_accuracy: Interval
    accuracy_on_reals: Interval
    accuracy_on_generated: Interval
    tpr_at_fpr_1: Interval
    tpr_at_fpr_5: Interval
    calibration_error: Interval
    balanced_calibration_error: Interval
    real_accused: Interval
    real_reviewed: Interval
    generated_found: Interval
    generated_reviewed: Interval

    @property
    def reviewed(self) -> float:
        """The share of all pictures that is sent to a person, 0..1."""
        real, generated = self.real_reviewed.value, self.generated_reviewed.value
        return (real * self.real + generated * self.generated) / (self.real + self.generated)

    def rounded(self) -> dict[str, float]:
        """Return the counts and values by name, to three places, with the AUROC's interval."""
        flat: dict[str, float] = {}
        for field in fields(self):
            figure = getattr(self, field.name)
            flat[field.name] = round(figure.value, 3) if isinstance(figure, Interval) else figure
        return flat | {"auroc_low": round(self.auroc.low, 3), "auroc_high": round(self.auroc.high, 3)}


@dataclass(frozen=True)
class FamilyFigures:
    """The figures of one family against the other class; `pictures` counts the family's own."""

    family: str
    is_generated: bool
    pictures: int
    figures: Figures


def labels_of(scored: Sequence[Scored]) -> Labels:
    """Return the labels (N,) of scored pictures: 1 for generated."""
    return np.array([int(item.generated) for item in scored], dtype=np.int64)


def ranking_of(scored: Sequence[Scored]) -> Ranking:
    """Return the ranking of scored pictures by their logits. Raises ValueError when a class is missing."""
    return Ranking(np.array([item.logit for item in scored]), labels_of(scored))


def figures(scored: Sequence[Scored], thresholds: Thresholds) -> Figures:
    """Compute the figures of scored pictures. Raises ValueError when a class is missing."""
    labels = labels_of(scored)
    ranking = ranking_of(scored)
    probabilities = np.array([item.probability for item in scored])
    right = (probabilities >= _MIDDLE) == (labels == 1)
    real, generated = labels == 0, labels == 1
    measured = intervals(
        {
            "auroc": ranking.auroc,
            "average_precision": ranking.average_precision,
            "balanced_accuracy": lambda counts: _balanced(right, labels, counts),
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
        accuracy_on_reals=share(int(right[real].sum()), int(real.sum())),
        accuracy_on_generated=share(int(right[generated].sum()), int(generated.sum())),
        **measured,
        **policy_shares(labels, [decide(item.probability, thresholds) for item in scored]),
    )


def family_figures(scored: Sequence[Scored], thresholds: Thresholds) -> list[FamilyFigures]:
    """Return the figures by family, generated ones first, each group by name.

    A generated family is measured against all reals, a real source against all generated pictures.
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
        )
        for generated, family in families
    ]


def policy_shares(labels: Labels, verdicts: Sequence[VerdictName]) -> dict[str, Interval]:
    """Return the shares of verdicts (N,) by label (N,): reals accused, generated found, both reviewed."""
    decided = np.array(verdicts)

    def of(label: int, verdict: VerdictName) -> Interval:
        own = decided[labels == label]
        return share(int((own == verdict).sum()), len(own))

    return {
        "real_accused": of(0, "generated"),
        "real_reviewed": of(0, "review"),
        "generated_found": of(1, "generated"),
        "generated_reviewed": of(1, "review"),
    }


def _balanced(right: NDArray[np.bool_], labels: Labels, counts: Counts) -> Scores:
    shares = [counts[:, labels == label] @ right[labels == label] for label in (0, 1)]
    sizes = [counts[:, labels == label].sum(axis=1) for label in (0, 1)]
    return np.asarray((shares[0] / sizes[0] + shares[1] / sizes[1]) / 2)
