"""Metrics against values computed by hand, and against their definitions."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.metrics import (
    Ranking,
    ReliabilityBin,
    auroc,
    calibration_errors,
    intervals,
    once,
    reliability,
    resamples,
    roc,
    share,
)

# Few distinct scores make ties common; metrics need at least one picture of each class.
scored_pictures = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 1)), max_size=30).map(
    lambda drawn: [(3, 0), (3, 1), *drawn]
)


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the average precision of the set itself."""
    return float(Ranking(scores, labels).average_precision(once(labels))[0])


def tpr_at_fpr(scores: np.ndarray, labels: np.ndarray, max_fpr: float) -> float:
    """Return the detection rate of the set itself at a false positive rate of at most `max_fpr`."""
    return float(Ranking(scores, labels).tpr_at_fpr(once(labels), max_fpr)[0])


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the calibration error of the set itself."""
    return float(calibration_errors(probabilities, labels, once(labels))[0])


def arrays(pictures: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return scores in 0..1 and labels."""
    scores, labels = zip(*pictures, strict=True)
    return np.array(scores) / 6, np.array(labels)


# No deadline: a busy machine makes single examples slow.
@settings(deadline=None)
@given(scored_pictures)
def test_the_auroc_is_the_share_of_pairs_in_the_right_order(pictures: list[tuple[int, int]]) -> None:
    """Every generated picture against every real one; a tie is half a pair."""
    generated = [score for score, label in pictures if label]
    real = [score for score, label in pictures if not label]
    pairs = [1.0 if g > r else 0.5 if g == r else 0.0 for g, r in itertools.product(generated, real)]
    assert auroc(*arrays(pictures)) == pytest.approx(sum(pairs) / len(pairs))


@settings(deadline=None)
@given(scored_pictures, st.sampled_from([0.01, 0.05, 0.25, 0.5]))
def test_the_detection_rate_is_that_of_the_best_threshold_within_the_false_positive_rate(
    pictures: list[tuple[int, int]], max_fpr: float
) -> None:
    """Of all thresholds with at most this false positive rate, the one that detects most."""
    scores, labels = arrays(pictures)
    thresholds = [*np.unique(scores), 2.0]
    allowed = [cut for cut in thresholds if (scores[labels == 0] >= cut).mean() <= max_fpr]
    best = max((scores[labels == 1] >= cut).mean() for cut in allowed)
    assert tpr_at_fpr(scores, labels, max_fpr) == pytest.approx(best)


@settings(deadline=None)
@given(scored_pictures, st.integers(0, 5))
def test_a_resample_has_the_metrics_of_its_pictures_listed_repeatedly(
    pictures: list[tuple[int, int]], seed: int
) -> None:
    """Counting a picture twice equals listing it twice, for every metric."""
    scores, labels = arrays(pictures)
    counts = next(resamples(labels, rounds=3, seed=seed))
    ranking = Ranking(scores, labels)
    for index, own in enumerate(counts):
        listed = np.repeat(scores, own.astype(int)), np.repeat(labels, own.astype(int))
        assert ranking.auroc(counts)[index] == pytest.approx(auroc(*listed))
        assert ranking.average_precision(counts)[index] == pytest.approx(average_precision(*listed))
        assert ranking.tpr_at_fpr(counts, 0.2)[index] == pytest.approx(tpr_at_fpr(*listed, 0.2))
        expected = expected_calibration_error(*listed)
        assert calibration_errors(scores, labels, counts)[index] == pytest.approx(expected)


def test_the_average_precision_lets_ties_share_a_threshold() -> None:
    """At 0.9 one hit of one; at 0.5 two hits of three: (1 x 1 + 1 x 2/3) / 2 = 5/6."""
    assert average_precision(np.array([0.9, 0.5, 0.5]), np.array([1, 0, 1])) == pytest.approx(5 / 6)


def test_a_rate_that_is_a_whole_number_of_photographs_is_used_in_full() -> None:
    """5 % of 60 photographs are three, so the threshold is above the fourth highest: 56.5 passes, 55.5 fails.

    In floating point 0.05 x 60 could round below three.
    """
    scores = np.append(np.arange(60.0), [56.5, 55.5])
    labels = np.append(np.zeros(60, dtype=int), [1, 1])
    assert tpr_at_fpr(scores, labels, 0.05) == 0.5


def test_a_rate_below_one_photograph_flags_none() -> None:
    """1 % of four photographs is none: of 0.8 and 0.6 only 0.8 scores above all of them."""
    scores, labels = np.array([0.7, 0.3, 0.2, 0.1, 0.8, 0.6]), np.array([0, 0, 0, 0, 1, 1])
    assert tpr_at_fpr(scores, labels, 0.01) == 0.5


def test_the_calibration_error_weighs_each_bin_by_its_pictures() -> None:
    """Bin 0.2: three pictures, a third generated, gap 0.1333; bin 0.9: one, generated, gap 0.1.

    (3 x 0.13333 + 1 x 0.1) / 4 = 0.125.
    """
    probabilities, labels = np.array([0.2, 0.2, 0.2, 0.9]), np.array([0, 0, 1, 1])
    assert expected_calibration_error(probabilities, labels) == pytest.approx(0.125)


def test_the_balanced_calibration_error_gives_both_classes_the_same_weight() -> None:
    """One generated and three real pictures, all at 0.5: the error is 0.25, and 0 when balanced."""
    probabilities, labels = np.full(4, 0.5), np.array([1, 0, 0, 0])
    assert calibration_errors(probabilities, labels, once(labels))[0] == pytest.approx(0.25)
    balanced = calibration_errors(probabilities, labels, once(labels), balanced=True)
    assert balanced[0] == pytest.approx(0.0)


def test_the_reliability_bins_hold_counts_means_and_frequencies() -> None:
    """0.10 and 0.14 share a bin, one of them generated; 1.0 is in the last bin; empty bins are omitted."""
    first, last = reliability(np.array([0.10, 0.14, 1.0]), np.array([1, 0, 1]))
    assert (first.count, first.frequency) == (2, 0.5)
    assert first.probability == pytest.approx(0.12)
    assert last == ReliabilityBin(1, 1.0, 1.0)


def test_the_roc_steps_right_for_photographs_and_up_for_generated_pictures() -> None:
    """Highest score first: a generated picture, then a tie of both classes, then a photograph."""
    false, true = roc(np.array([0.9, 0.5, 0.5, 0.1]), np.array([1, 0, 1, 0]))
    np.testing.assert_allclose(false, [0, 0, 0.5, 1])
    np.testing.assert_allclose(true, [0, 0.5, 1, 1])


def test_resamples_keep_the_size_of_each_class_and_are_the_same_in_every_run() -> None:
    """Each of 50 has four real and two generated pictures."""
    labels = np.array([0, 1, 0, 0, 1, 0])
    drawn = np.concatenate(list(resamples(labels, rounds=50)))
    assert drawn.shape == (50, 6)
    assert (drawn[:, labels == 0].sum(axis=1) == 4).all()
    assert (drawn[:, labels == 1].sum(axis=1) == 2).all()
    assert len(np.unique(drawn, axis=0)) > 10
    np.testing.assert_array_equal(drawn, np.concatenate(list(resamples(labels, rounds=50))))


def test_the_interval_of_the_auroc_is_as_wide_as_theory_says() -> None:
    """200 pictures of each class, one deviation apart, AUROC 0.76.

    Hanley and McNeil (1982) give its standard error: with A = 0.76, Q1 = A / (2 - A) = 0.6129 and
    Q2 = 2 A^2 / (1 + A) = 0.6564, sqrt((A (1 - A) + 199 (Q1 - A^2) + 199 (Q2 - A^2)) / 40000) = 0.0238;
    the interval is 3.92 times as wide, 0.093.
    """
    rng = np.random.default_rng(0)
    scores = np.append(rng.normal(0, 1, 200), rng.normal(1, 1, 200))
    labels = np.repeat([0, 1], 200)
    measured = intervals({"auroc": Ranking(scores, labels).auroc}, labels)["auroc"]
    assert measured.low < measured.value < measured.high
    assert measured.high - measured.low == pytest.approx(0.093, rel=0.2)


def test_a_paired_margin_has_a_narrower_interval_than_a_single_auroc() -> None:
    """Two detectors that nearly agree differ little on every resample, which only pairing shows."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 100)
    scores = labels + rng.normal(0, 1, 200)
    own, baseline = Ranking(scores + rng.normal(0, 0.05, 200), labels), Ranking(scores, labels)
    measured = intervals({"own": own.auroc, "margin": lambda c: own.auroc(c) - baseline.auroc(c)}, labels)
    width = {name: each.high - each.low for name, each in measured.items()}
    assert width["margin"] < width["own"] / 4


def test_a_share_of_zero_has_an_interval() -> None:
    """Wilson's interval of 0 of 10 ends at 1.96^2 / (10 + 1.96^2) = 0.2775; that of 5 of 10 is symmetric.

    For five of ten the half width is sqrt(0.25 x 0.38415 + 0.38415^2 / 4) / 1.38415 = 0.2634.
    """
    none = share(0, 10)
    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(0.2775, abs=1e-4)
    half = share(5, 10)
    assert half.low == pytest.approx(0.5 - 0.2634, abs=1e-4)
    assert half.high == pytest.approx(0.5 + 0.2634, abs=1e-4)


def test_metrics_of_a_single_class_raise_an_error() -> None:
    """A number would mean nothing."""
    with pytest.raises(ValueError, match="both classes"):
        auroc(np.array([0.1, 0.2]), np.array([1, 1]))


def test_the_auroc_counts_pairs_and_halves_ties() -> None:
    """Of four pairs, two are won, one lost and one tied: 0.625."""
    assert auroc(np.array([0.9, 0.5, 0.5, 0.7]), np.array([1, 1, 0, 0])) == pytest.approx(0.625)


def test_the_average_precision_is_the_mean_precision_at_each_hit() -> None:
    """Hits at ranks 1 and 3: (1/1 + 2/3) / 2."""
    scores, labels = np.array([0.9, 0.8, 0.7, 0.1]), np.array([1, 0, 1, 0])
    assert average_precision(scores, labels) == pytest.approx((1 + 2 / 3) / 2)


def test_the_detection_rate_is_counted_above_the_allowed_photographs() -> None:
    """A rate of a quarter allows one of four photographs: the threshold is the second highest."""
    scores = np.array([0.9, 0.6, 0.3, 0.1, 0.8, 0.5, 0.2])
    labels = np.array([0, 0, 0, 0, 1, 1, 1])
    assert tpr_at_fpr(scores, labels, 0.25) == pytest.approx(1 / 3)


def test_the_calibration_error_is_the_mean_gap() -> None:
    """Four scores of 0.8, half of them generated: the error is 0.3."""
    assert expected_calibration_error(np.full(4, 0.8), np.array([1, 1, 0, 0])) == pytest.approx(0.3)


def test_an_interval_over_units_is_wider_than_one_over_their_pictures() -> None:
    """Four generators of fifty pictures that score alike are four observations, not two hundred."""
    labels = np.repeat([0, 1], 200)
    units = np.concatenate([np.repeat(np.arange(20), 10), 20 + np.repeat(np.arange(4), 50)])
    scores = np.concatenate([np.linspace(-1, 1, 200), np.repeat([-0.5, 0.0, 0.5, 1.0], 50)])
    formula = {"auroc": Ranking(scores, labels).auroc}
    pictures = intervals(formula, labels)["auroc"]
    generators = intervals(formula, labels, units=units)["auroc"]
    assert pictures.value == generators.value
    assert generators.high - generators.low > 2 * (pictures.high - pictures.low)
