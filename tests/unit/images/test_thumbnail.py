"""Noise features as pictures for people."""

import io

import numpy as np
from PIL import Image

from detector.images.thumbnail import CONTENT_TYPE, SIGNATURE, dnf_picture, dnf_thumbnail


def test_zero_noise_is_grey() -> None:
    """The signed picture is centred on grey."""
    assert dnf_picture(np.zeros((3, 8, 8), dtype=np.float32)).tolist() == np.full((8, 8, 3), 127).tolist()


def test_the_thumbnail_is_a_picture_of_the_stated_type_and_side() -> None:
    """Its first bytes and its media type are those that the module names."""
    thumbnail = dnf_thumbnail(np.random.default_rng(0).normal(size=(3, 64, 64)).astype(np.float32), 96)
    assert thumbnail.startswith(SIGNATURE)
    with Image.open(io.BytesIO(thumbnail)) as image:
        assert (image.get_format_mimetype(), image.size) == (CONTENT_TYPE, (96, 96))


def test_the_thumbnail_keeps_the_colours_of_the_noise() -> None:
    """Colours that change from pixel to pixel vary as before; at half resolution they would fade to grey."""
    noise = np.random.default_rng(0).normal(size=(3, 128, 128)).astype(np.float32)
    original = dnf_picture(noise).astype(float)
    with Image.open(io.BytesIO(dnf_thumbnail(noise))) as image:
        shown = np.asarray(image).astype(float)
    kept = (shown - shown.mean(2, keepdims=True)).std() / (original - original.mean(2, keepdims=True)).std()
    assert 0.9 < kept < 1.1
