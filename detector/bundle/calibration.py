"""Logits to probabilities, and thresholds from a budget of false accusations."""

import math

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from detector.policy import Thresholds


class PlattScaling(BaseModel):
    """`probability = sigmoid(slope * logit + offset)` (Platt 1999); 1 and 0 leave the logit as it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slope: float = Field(default=1.0, gt=0)
    offset: float = 0.0

    def probability(self, logit: float) -> float:
        """Return the calibrated probability of *generated*, in 0..1."""
        scaled = self.slope * logit + self.offset
        if scaled >= 0:
            return 1 / (1 + math.exp(-scaled))
        return math.exp(scaled) / (1 + math.exp(scaled))


def fit_platt(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> PlattScaling:
    """Fit Platt scaling on the log-loss, both classes weighted alike; see `fit_logistic`.

    `logits` and `labels` (1 = generated) are of shape (N,). Raises ValueError when a class is missing.
    """
    slope, offset = fit_logistic(logits[:, None], labels)
    return PlattScaling(slope=max(float(slope), 1e-3), offset=float(offset))


def fit_logistic(
    values: NDArray[np.float64], labels: NDArray[np.int64], *, rounds: int = 100
) -> NDArray[np.float64]:
    """Return the weights (K + 1,) of a logistic regression, the offset last, both classes weighted alike.

    Newton's method on the log-loss of `values` (N, K) against `labels` (N,), 1 = generated. A small ridge
    keeps the weights finite when the classes are separable. Raises ValueError when a class is missing.
    """
    if labels.min() == labels.max():
        raise ValueError("calibration needs pictures of both classes")
    weights = np.where(labels == 1, 0.5 / labels.mean(), 0.5 / (1 - labels.mean()))
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
    real_probabilities: NDArray[np.float64], *, accused: float = 0.01, reviewed: float = 0.10
) -> Thresholds:
    """Choose the cuts so that at most these shares of real photographs are accused, or reach a person.

    `real_probabilities` (N,) are the calibrated scores of real photographs that were not trained on;
    `accused` and `reviewed` are shares in 0..1. The cut lies just above the score that would break the
    budget.
    """
    ordered = np.sort(real_probabilities)[::-1]

    def cut(share: float) -> float:
        allowed = math.floor(share * len(ordered))
        return min(float(np.nextafter(ordered[min(allowed, len(ordered) - 1)], 2.0)), 1.0)

    return Thresholds(review_from=cut(max(accused, reviewed)), generated_from=cut(accused))
