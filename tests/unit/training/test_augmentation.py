"""The codec chain and the published augmentation."""

import numpy as np
import pytest

from detector.training.augmentation import CHAINS, CodecChain, SquashAndFlip


def test_the_chain_ignores_the_label() -> None:
    """The chain does not see the label: the same picture and seed give the same crop."""
    pixels = np.random.default_rng(0).integers(0, 256, (120, 90, 3), dtype=np.uint8)
    first = CodecChain()(pixels, 64, np.random.default_rng(3))
    second = CodecChain()(pixels, 64, np.random.default_rng(3))
    assert first.shape == (64, 64, 3)
    np.testing.assert_array_equal(first, second)


def test_the_chain_accepts_pictures_smaller_than_the_crop() -> None:
    """They are mirrored at their edges."""
    crop = CodecChain()(np.zeros((40, 50, 3), dtype=np.uint8), 64, np.random.default_rng(0))
    assert crop.shape == (64, 64, 3)


@pytest.mark.parametrize("name", CHAINS)
def test_every_chain_cuts_crops_of_the_size_whatever_it_draws(name: str) -> None:
    """Small, wide and large pictures, over many draws."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        height, width = rng.integers(40, 400, 2)
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        assert CHAINS[name](pixels, 64, rng).shape == (64, 64, 3)


def test_the_published_augmentation_squashes_the_whole_picture() -> None:
    """Half of a wide picture is white, and so is half of the square."""
    wide = np.zeros((40, 160, 3), dtype=np.uint8)
    wide[:, 80:] = 255
    square = SquashAndFlip()(wide, 64, np.random.default_rng(0))
    assert square.shape == (64, 64, 3)
    assert 0.45 < (square > 127).mean() < 0.55
