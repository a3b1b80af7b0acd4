"""Figures of merit of scores against labels (1 = generated)."""

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
Labels = NDArray[np.int64]


def auroc(scores: Scores, labels: Labels) -> float:
    """Return the chance, 0..1, that a generated picture scores above a real one; ties count half.

    `scores` and `labels` have shape (N,). Raises ValueError when a class is missing.
    """
    generated, real = scores[labels == 1], np.sort(scores[labels == 0])
    if not len(generated) or not len(real):
        raise ValueError("AUROC needs pictures of both classes")
    below = np.searchsorted(real, generated, side="left")
    not_above = np.searchsorted(real, generated, side="right")
    return float((below + not_above).mean() / 2 / len(real))


def average_precision(scores: Scores, labels: Labels) -> float:
    """Return the mean precision at each generated picture, 0..1, by falling score; ties share a threshold."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(labels[order])
    last_of_tie = np.append(np.diff(scores[order]) != 0, True)
    hits, count = hits[last_of_tie], np.arange(1, len(scores) + 1)[last_of_tie]
    return float(np.sum(np.diff(hits, prepend=0) * hits / count) / labels.sum())


def tpr_at_fpr(scores: Scores, labels: Labels, budget: float) -> float:
    """Return the share of generated pictures found when at most `budget` (0..1) of the reals are accused."""
    real = np.sort(scores[labels == 0])[::-1]
    threshold = real[min(int(budget * len(real)), len(real) - 1)]
    return float((scores[labels == 1] > threshold).mean())


def expected_calibration_error(probabilities: Scores, labels: Labels, bins: int = 10) -> float:
    """Return the mean gap, 0..1, between probability and frequency over equal-width bins."""
    place = np.minimum((probabilities * bins).astype(int), bins - 1)
    gaps = [
        abs(probabilities[place == b].mean() - labels[place == b].mean()) * (place == b).mean()
        for b in range(bins)
        if (place == b).any()
    ]
    return float(sum(gaps))


def bootstrap_auroc(
    scores: Scores, labels: Labels, *, rounds: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % interval of the AUROC by resampling each class, `rounds` times."""
    rng = np.random.default_rng(seed)
    generated, real = scores[labels == 1], scores[labels == 0]
    known = np.repeat([1, 0], [len(generated), len(real)])
    values = [
        auroc(np.concatenate([rng.choice(generated, len(generated)), rng.choice(real, len(real))]), known)
        for _ in range(rounds)
    ]
    return float(np.quantile(values, 0.025)), float(np.quantile(values, 0.975))
