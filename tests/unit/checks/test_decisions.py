"""Calibration, thresholds and verdicts, against values computed by hand."""

import numpy as np
import pytest
from pydantic import ValidationError

from detector.bundle.calibration import PlattScaling, Thresholds, fit_platt, thresholds_for_budget
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
