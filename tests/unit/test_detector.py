"""The detector: from pictures to findings."""

from pathlib import Path

import numpy as np
import pytest

from detector.detector import Detector


def test_a_batch_gives_each_picture_its_own_finding(tiny_bundle: Path) -> None:
    """Findings keep the order, and a picture's score does not depend on the rest of the batch."""
    detector = Detector.load(tiny_bundle, device="cpu", dtype="float32")
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (70 + 9 * i, 90, 3), dtype=np.uint8) for i in range(5)]
    prepared = [detector.prepare(picture) for picture in pictures]
    together = detector.examine(prepared)
    single = [detector.examine([one])[0] for one in prepared]
    assert [f.logit for f in together] == pytest.approx([f.logit for f in single], abs=1e-4)
    assert detector.examine([]) == []


def test_a_picture_smaller_than_a_view_is_examined(tiny_bundle: Path) -> None:
    """The picture is mirrored at its edges and keeps its scale."""
    detector = Detector.load(tiny_bundle, device="cpu")
    assert detector.prepare(np.zeros((33, 40, 3), dtype=np.uint8)).shape == (1, 3, 64, 64)


def test_bfloat16_stays_near_float32(tiny_bundle: Path) -> None:
    """The probabilities in both types differ by less than 0.02."""
    picture = np.random.default_rng(1).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    scores = []
    for dtype in ("float32", "bfloat16"):
        detector = Detector.load(tiny_bundle, device="cpu", dtype=dtype)
        scores.append(detector.examine([detector.prepare(picture)])[0].probability)
    assert scores[0] == pytest.approx(scores[1], abs=0.02)
