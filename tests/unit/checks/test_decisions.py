"""Calibration, thresholds, verdicts and figures, against values computed by hand."""

import numpy as np
import pytest
from pydantic import ValidationError

from detector.bundle.calibration import PlattScaling, Thresholds, fit_platt, thresholds_for_budget
from detector.metrics import auroc, average_precision, expected_calibration_error, tpr_at_fpr
from detector.policy import decide


def test_the_verdict_follows_the_two_cuts() -> None:
    """Each cut belongs to the sterner side."""
    cuts = Thresholds(review_from=0.4, generated_from=0.8)
    assert [decide(p, cuts) for p in (0.0, 0.39, 0.4, 0.79, 0.8, 1.0)] == [
        "real",
        "real",
        "review",
        "review",
        "generated",
        "generated",
    ]


def test_crossed_cuts_are_refused() -> None:
    """The review band cannot begin above the accusing cut."""
    with pytest.raises(ValidationError):
        Thresholds(review_from=0.9, generated_from=0.5)


def test_a_logit_becomes_a_probability() -> None:
    """The plain sigmoid by default; extreme logits do not overflow."""
    assert PlattScaling().probability(0.0) == 0.5
    assert PlattScaling(slope=2, offset=-1).probability(1.0) == pytest.approx(1 / (1 + np.exp(-1)))
    assert PlattScaling().probability(-1e4) == 0.0
    assert PlattScaling().probability(1e4) == 1.0


def test_platt_scaling_recovers_the_slope_that_made_the_labels() -> None:
    """Labels drawn from sigmoid(2 x) are fitted with a slope near 2 and no offset."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 20_000)
    labels = (rng.random(20_000) < 1 / (1 + np.exp(-2 * logits))).astype(np.int64)
    fitted = fit_platt(logits, labels)
    assert fitted.slope == pytest.approx(2, abs=0.1)
    assert fitted.offset == pytest.approx(0, abs=0.1)


def test_thresholds_keep_the_budget_of_false_accusations() -> None:
    """Of 200 real scores at most 1 % reach the accusing cut and at most 10 % the review band."""
    scores = np.random.default_rng(0).random(200)
    cuts = thresholds_for_budget(scores, flagged=0.01, reviewed=0.10)
    assert (scores >= cuts.generated_from).sum() == 2
    assert (scores >= cuts.review_from).sum() == 20


def test_the_auroc_counts_pairs_and_halves_ties() -> None:
    """Of four pairs, two are won, one lost and one tied: 0.625."""
    assert auroc(np.array([0.9, 0.5, 0.5, 0.7]), np.array([1, 1, 0, 0])) == pytest.approx(0.625)


def test_the_average_precision_is_the_mean_precision_at_each_hit() -> None:
    """Hits at ranks 1 and 3: (1/1 + 2/3) / 2."""
    scores, labels = np.array([0.9, 0.8, 0.7, 0.1]), np.array([1, 0, 1, 0])
    assert average_precision(scores, labels) == pytest.approx((1 + 2 / 3) / 2)


def test_the_found_share_is_counted_above_the_budget() -> None:
    """With a quarter of four reals allowed, the cut is the second highest real."""
    scores = np.array([0.9, 0.6, 0.3, 0.1, 0.8, 0.5, 0.2])
    labels = np.array([0, 0, 0, 0, 1, 1, 1])
    assert tpr_at_fpr(scores, labels, 0.25) == pytest.approx(1 / 3)


def test_the_calibration_error_is_the_mean_gap() -> None:
    """Four scores of 0.8, of which half are right, are 0.3 off."""
    assert expected_calibration_error(np.full(4, 0.8), np.array([1, 1, 0, 0])) == pytest.approx(0.3)
