"""Calibration and thresholds, against values computed by hand."""

import numpy as np
import pytest
from pydantic import ValidationError

from detector.bundle.calibration import (
    PlattScaling,
    fit_logistic,
    fit_platt,
    thresholds_for_budget,
)
from detector.bundle.thresholds import Thresholds


def test_crossed_thresholds_are_rejected() -> None:
    """`review_from` cannot be above `generated_from`."""
    with pytest.raises(ValidationError):
        Thresholds(review_from=0.9, generated_from=0.5)


def test_a_logit_becomes_a_probability() -> None:
    """The default is the plain sigmoid, and extreme logits do not overflow."""
    assert PlattScaling().probability(0.0) == 0.5
    assert PlattScaling(slope=2, offset=-1).probability(1.0) == pytest.approx(1 / (1 + np.exp(-1)))
    assert PlattScaling().probability(-1e4) == 0.0
    assert PlattScaling().probability(1e4) == 1.0


def test_platt_scaling_recovers_the_slope_behind_the_labels() -> None:
    """Labels drawn from sigmoid(2 x) give a slope near 2 and an offset near 0."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 20_000)
    labels = (rng.random(20_000) < 1 / (1 + np.exp(-2 * logits))).astype(np.int64)
    fitted = fit_platt(logits, labels)
    assert fitted.slope == pytest.approx(2, abs=0.1)
    assert fitted.offset == pytest.approx(0, abs=0.1)


def test_thresholds_keep_the_false_positive_budget() -> None:
    """With 199 photographs the next one is flagged in 1 % of all cases, and not called real in 10 %."""
    rng = np.random.default_rng(0)
    flagged, not_real = [], []
    for _ in range(2000):
        *known, new = rng.random(200)
        thresholds = thresholds_for_budget(np.array(known), flagged=0.01, reviewed=0.10)
        flagged.append(new >= thresholds.generated_from)
        not_real.append(new >= thresholds.review_from)
    # Four standard deviations of 2,000 draws.
    assert np.mean(flagged) == pytest.approx(0.01, abs=4 * (0.01 * 0.99 / 2000) ** 0.5)
    assert np.mean(not_real) == pytest.approx(0.10, abs=4 * (0.1 * 0.9 / 2000) ** 0.5)


def test_fewer_photographs_than_the_budget_needs_are_all_below_the_threshold() -> None:
    """With 50 photographs 1 % is less than one: none of them is flagged."""
    scores = np.random.default_rng(0).random(50)
    assert (scores >= thresholds_for_budget(scores, flagged=0.01).generated_from).sum() == 0


def test_logistic_regression_recovers_the_weights_behind_the_labels() -> None:
    """Labels drawn with the weights 2 and -1 give a fit within 0.1 of them."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(10_000, 2))
    chances = 1 / (1 + np.exp(-(2 * values[:, 0] - values[:, 1])))
    weights = fit_logistic(values, (rng.random(10_000) < chances).astype(np.int64))
    np.testing.assert_allclose(weights, [2, -1, 0], atol=0.1)
