"""Calibration: logits to probabilities (Platt scaling), and thresholds that keep a false positive budget."""

import math

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from detector.bundle.thresholds import Thresholds


class PlattScaling(BaseModel):
    """`probability = sigmoid(slope * logit + offset)` (Platt 1999); the defaults are the plain sigmoid."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Positive, so that calibration keeps the order of the logits.
    slope: float = Field(default=1.0, gt=0)
    #: Added to the scaled logit.
    offset: float = 0.0

    def probability(self, logit: float) -> float:
        """Return the calibrated probability of *generated*, in 0..1."""
        scaled = self.slope * logit + self.offset
        # exp() of a large positive number would overflow, so each sign has its own formula.
        if scaled >= 0:
            return 1 / (1 + math.exp(-scaled))
        return math.exp(scaled) / (1 + math.exp(scaled))


def fit_platt(
    logits: NDArray[np.float64], labels: NDArray[np.int64], weights: NDArray[np.float64] | None = None
) -> PlattScaling:
    """Fit Platt scaling to `logits` (N,) and `labels` (N,), 1 = generated.

    Both classes are weighted equally; `weights` (N,) are those of the pictures within their class, by default
    equal. Raises ValueError when a class is missing.
    """
    slope, offset = fit_logistic(logits[:, None], labels, weights)
    return PlattScaling(slope=max(float(slope), 1e-3), offset=float(offset))


def fit_logistic(
    values: NDArray[np.float64],
    labels: NDArray[np.int64],
    weights: NDArray[np.float64] | None = None,
    *,
    rounds: int = 100,
) -> NDArray[np.float64]:
    """Return the K weights and the offset, (K + 1,), of a logistic regression with equally weighted classes.

    Newton's method on the log-loss of `values` (N, K) against `labels` (N,), 1 = generated, where `weights`
    (N,) are those of the pictures within their class, by default equal; a small ridge penalty keeps the
    result finite when the classes are separable. Raises ValueError when a class is missing.
    """
    if labels.min() == labels.max():
        raise ValueError("calibration needs pictures of both classes")
    weights = np.ones(len(labels)) if weights is None else weights
    shares = [weights[labels == label].sum() / len(labels) for label in (0, 1)]
    weights = weights * np.where(labels == 1, 0.5 / shares[1], 0.5 / shares[0])
    design = np.concatenate([values, np.ones((len(values), 1))], axis=1)
    ridge = np.diag([1e-3] * values.shape[1] + [1e-6])
    theta = np.array([1.0 / values.shape[1]] * values.shape[1] + [0.0])
    for _ in range(rounds):
        probability = 1 / (1 + np.exp(-np.clip(design @ theta, -30, 30)))
        gradient = design.T @ (weights * (probability - labels)) + ridge @ theta
        curvature = (design * (weights * probability * (1 - probability))[:, None]).T @ design + ridge
        step = np.linalg.solve(curvature, gradient)
        theta = theta - step
        if np.abs(step).max() < 1e-9:  # noqa: PLR2004 - convergence
            break
    return theta


def thresholds_for_budget(
    photograph_probabilities: NDArray[np.float64], *, flagged: float = 0.01, reviewed: float = 0.10
) -> Thresholds:
    """Choose the lowest thresholds that keep the false positive budget on photographs.

    `photograph_probabilities` (N,) are calibrated scores of photographs outside the training set. The next
    photograph like them is called *generated* with a probability of at most `flagged` (0..1), and is not
    *real* with one of at most `reviewed` (0..1): a threshold is above the k-th highest score, where k is the
    share of N + 1, rounded down (Vovk et al., "Algorithmic Learning in a Random World", 2005, section 2.2).
    With fewer photographs than one over the share it is above all of them, which cannot keep the budget.
    """
    ordered = np.sort(photograph_probabilities)[::-1]

    def threshold(share: float) -> float:
        """Return the next float above the score that would exceed the budget."""
        rank = max(math.floor(share * (len(ordered) + 1)), 1)
        return min(float(np.nextafter(ordered[min(rank, len(ordered)) - 1], 2.0)), 1.0)

    return Thresholds(review_from=threshold(max(flagged, reviewed)), generated_from=threshold(flagged))
