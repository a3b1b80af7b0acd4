"""Twins of photographs."""

import numpy as np
import pytest
from PIL import Image

from detector.training.twins import TWINS, twin


@pytest.mark.parametrize("kind", TWINS)
def test_a_twin_shows_the_photograph_and_differs_by_a_trace(kind: str) -> None:
    """A smooth picture with fine texture: every draw changes it, on average by a few grey levels."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(60, 200, (12, 16, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((65, 49), Image.Resampling.BICUBIC)).astype(np.int64)
    pixels = np.clip(pixels + rng.integers(-6, 7, pixels.shape), 0, 255).astype(np.uint8)
    for seed in range(20):
        made = twin(kind, pixels, np.random.default_rng(seed))
        assert made.shape == pixels.shape
        assert made.dtype == np.uint8
        difference = np.abs(made.astype(int) - pixels)
        assert 0.2 < difference.mean() < 8
        np.testing.assert_array_equal(made, twin(kind, pixels, np.random.default_rng(seed)))


def test_an_upsampled_twin_has_the_period_of_its_layer() -> None:
    """Between the phases of the finer grid the spectrum has a peak that noise does not have."""
    pixels = np.random.default_rng(1).integers(100, 156, (64, 64, 3), dtype=np.uint8)
    peaks = []
    for seed in range(30):
        made = twin("upsampled", pixels, np.random.default_rng(seed)).astype(float).mean(axis=2)
        rows = np.abs(np.diff(made, axis=0)).mean(axis=1)
        peaks.append(abs(rows[::2].mean() - rows[1::2].mean()) / rows.mean())
    original = np.abs(np.diff(pixels.astype(float).mean(axis=2), axis=0)).mean(axis=1)
    assert np.median(peaks) > 3 * abs(original[::2].mean() - original[1::2].mean()) / original.mean()
