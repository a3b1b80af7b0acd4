"""The stability check: a verdict that a re-encoding overturns becomes review."""

from pathlib import Path

import numpy as np
import pytest

from detector.bundle.thresholds import Thresholds
from detector.detector import Detector
from detector.evaluation.stability import REENCODINGS, combined_verdict, stable_verdict
from detector.images.domain import doubt_of
from detector.policy import VerdictName


@pytest.fixture(scope="module")
def detector(tiny_bundle: Path) -> Detector:
    """Load the tiny bundle."""
    return Detector.load(tiny_bundle, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Make patches of colour with grain, which a codec changes and which is no picture out of the domain."""
    rng = np.random.default_rng(3)
    patches = np.kron(rng.integers(60, 196, (6, 8, 3)), np.ones((32, 32, 1), dtype=int))
    picture: np.ndarray = (patches + rng.integers(-9, 10, patches.shape)).astype(np.uint8)
    assert doubt_of(picture) is None
    return picture


@pytest.mark.parametrize(
    ("first", "others", "expected"),
    [
        ("generated", ["generated", "generated"], "generated"),
        ("generated", ["generated", "review"], "review"),
        ("generated", ["real", "real"], "review"),
        ("real", ["real", "review"], "real"),
        ("real", ["real", "generated"], "review"),
        ("review", ["generated", "generated"], "review"),
        ("review", ["real", "real"], "review"),
        ("generated", [], "generated"),
    ],
)
def test_generated_needs_every_reencoding_and_real_needs_none_generated(
    first: VerdictName, others: list[VerdictName], expected: VerdictName
) -> None:
    """Review stays review."""
    assert combined_verdict(first, others) == expected


def test_the_check_judges_the_picture_and_each_reencoding(detector: Detector, pixels: np.ndarray) -> None:
    """The finding is that of the picture itself; a re-encoding is scored from its decoded pixels."""
    checked = stable_verdict(detector, pixels, Thresholds(review_from=0.4, generated_from=0.6))
    alone = detector.examine([detector.prepare(pixels)])[0]
    assert checked.finding.logit == pytest.approx(alone.logit, abs=1e-4)
    again = detector.examine([detector.prepare(REENCODINGS[0].apply(pixels))])[0]
    assert len(checked.probabilities) == len(REENCODINGS)
    assert checked.probabilities[0] == pytest.approx(again.probability, abs=1e-4)


def test_a_verdict_that_a_reencoding_overturns_becomes_review(detector: Detector, pixels: np.ndarray) -> None:
    """A threshold between the picture's score and that of the farthest re-encoding separates them."""
    unanimous = stable_verdict(detector, pixels, Thresholds(review_from=0.0, generated_from=0.0))
    assert (unanimous.verdict, unanimous.overturned) == ("generated", False)
    own = unanimous.finding.probability
    farthest = max(unanimous.probabilities, key=lambda p: abs(p - own))
    assert farthest != own
    cut = (own + farthest) / 2
    split = stable_verdict(detector, pixels, Thresholds(review_from=cut, generated_from=cut))
    assert split.first == ("generated" if own > cut else "real")
    assert (split.verdict, split.overturned) == ("review", True)


def test_every_reencoding_changes_the_pixels_and_returns_a_picture(pixels: np.ndarray) -> None:
    """Three channels of bytes; the last one is three quarters of the size."""
    results = [each.apply(pixels) for each in REENCODINGS]
    assert all(result.dtype == np.uint8 and result.shape[2] == 3 for result in results)
    assert [result.shape[:2] for result in results] == [(192, 256), (192, 256), (144, 192)]
    assert all(not np.array_equal(result, pixels) for result in results[:2])
