"""Whether a picture is of the kind that detectors are trained on; a score for any other says little.

The limits were set on crops of photographs and generated pictures (docs/explanation/detector.md); they do not
depend on a bundle.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detector.images.doubt import Doubt
from detector.images.views import Pixels, crops

#: Pictures with a shorter side are out of the domain.
SMALLEST_SIDE = 128
#: Side and number of the squares that are looked at.
SQUARES = (128, 9)
# Grey levels by which a pixel differs from the mean of its four neighbours: plain below the first, fine
# texture up to the second, a hard edge from the third.
_PLAIN, _FINE, _HARD = 1, 12, 24
#: The least share of fine texture in the view that has most of it.
LEAST_TEXTURE = 0.13
#: The largest share of pixels in two ranges of 17 of the 256 levels.
MOST_IN_TWO_TONES = 0.9
#: The largest share in one such range, and of hard edges, that occur together.
MOST_IN_ONE_TONE, MOST_HARD_EDGES = 0.5, 0.1
#: The least correlation of horizontal neighbours.
LEAST_CORRELATION = 0.3


def doubt_of(picture: Pixels, squares: NDArray[np.uint8] | None = None) -> Doubt | None:
    """Return why a picture (H, W, 3) is out of the domain, or None; by nine squares of 128 pixels.

    `squares` are those, (9, 128, 128, 3), where they were cut before.
    """
    if min(picture.shape[:2]) < SMALLEST_SIDE:
        return "too_small"
    colours = crops(picture, *SQUARES) if squares is None else squares
    green = np.ascontiguousarray(colours[..., 1])
    shares = _shares(green)
    if _correlation(green, shares) < LEAST_CORRELATION:
        return "uncorrelated"
    # Nearly every picture has a square with fine texture, and no other needs to be looked at then.
    if not any(_texture(square) >= LEAST_TEXTURE for square in green):
        return "too_plain"
    one, two = _in_tones(shares)
    if two > MOST_IN_TWO_TONES or (one > MOST_IN_ONE_TONE and _hard_edges(green) > MOST_HARD_EDGES):
        return "two_tone"
    return None


def _residual(levels: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Return four times what each inner pixel (..., H, W) differs by from the mean of its neighbours."""
    wide = levels.astype(np.int16)
    residual = wide[..., 1:-1, 1:-1] * np.int16(4)
    residual -= wide[..., :-2, 1:-1]
    residual -= wide[..., 2:, 1:-1]
    residual -= wide[..., 1:-1, :-2]
    residual -= wide[..., 1:-1, 2:]
    np.abs(residual, out=residual)
    return residual


def _texture(square: NDArray[np.uint8]) -> float:
    residual = _residual(square)
    fine = (residual >= 4 * _PLAIN) & (residual < 4 * _FINE)
    return int(np.count_nonzero(fine)) / fine.size


def _hard_edges(squares: NDArray[np.uint8]) -> float:
    hard = _residual(squares) >= 4 * _HARD
    return int(np.count_nonzero(hard)) / hard.size


def _shares(levels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the share of pixels at each of the 256 levels."""
    histogram = Image.fromarray(levels.reshape(-1, levels.shape[-1])).histogram()
    return np.array(histogram) / levels.size


def _in_tones(shares: NDArray[np.float64]) -> tuple[float, float]:
    """Return the shares of pixels in the commonest range of levels, and in that and the next one."""
    first = np.convolve(shares, np.ones(17), "same")
    peak = int(first.argmax())
    rest = shares.copy()
    rest[max(0, peak - 16) : peak + 17] = 0
    second = np.convolve(rest, np.ones(17), "same").max()
    return float(first[peak]), float(first[peak] + second)


def _correlation(levels: NDArray[np.uint8], shares: NDArray[np.float64]) -> float:
    """Return the correlation of horizontal neighbours in squares (V, S, S)."""
    every = np.arange(256)
    mean = float(np.dot(shares, every))
    variance = float(np.dot(shares, np.square(every - mean)))
    if variance < 1:
        return 1.0  # one colour: plain rather than uncorrelated
    centred = levels.astype(np.float32)
    centred -= np.float32(mean)
    flat = centred.ravel()
    # All neighbours in memory, without the last pixel of a row and the first of the next one.
    apart = np.dot(centred[..., -1].ravel()[:-1], centred[..., 0].ravel()[1:])
    products = float(np.dot(flat[:-1], flat[1:]) - apart)
    return products / (levels[..., 1:].size * variance)
