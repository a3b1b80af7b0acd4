"""Noise features as pictures for people."""

import numpy as np

from detector.images.thumbnail import dnf_picture, dnf_thumbnail


def test_zero_noise_is_grey() -> None:
    """The signed picture is centred on grey."""
    assert dnf_picture(np.zeros((3, 8, 8), dtype=np.float32)).tolist() == np.full((8, 8, 3), 127).tolist()


def test_the_thumbnail_is_a_png_of_the_requested_side() -> None:
    """The width in the PNG header is the side that was asked for."""
    thumbnail = dnf_thumbnail(np.random.default_rng(0).normal(size=(3, 64, 64)).astype(np.float32), 96)
    assert thumbnail.startswith(b"\x89PNG")
    assert int.from_bytes(thumbnail[16:20]) == 96
