"""Whether a picture is of the kind that detectors are trained on; a score for any other says little.

The limits were set on crops of photographs and generated pictures (docs/explanation/detector.md); they do not
depend on a bundle.
"""

import numpy as np
from numpy.typing import NDArray

from detector.images.doubt import Doubt
from detector.images.views import crops

#: Pictures with a shorter side are out of the domain.
SMALLEST_SIDE = 128
_SIZE, _VIEWS = 128, 9
# Grey levels by which a pixel differs from the mean of its four neighbours: plain below the first, fine
# texture up to the second, a hard edge from the third.
_PLAIN, _FINE, _HARD = 1.0, 12.0, 24.0
#: The least share of fine texture in the view that has most of it.
LEAST_TEXTURE = 0.13
#: The largest share of pixels in two ranges of 17 of the 256 levels.
MOST_IN_TWO_TONES = 0.9
#: The largest share in one such range, and of hard edges, that occur together.
MOST_IN_ONE_TONE, MOST_HARD_EDGES = 0.5, 0.1
#: The least correlation of horizontal neighbours.
LEAST_CORRELATION = 0.3


def doubt_of(pixels: NDArray[np.uint8]) -> Doubt | None:
    """Return why a picture (H, W, 3) is out of the domain, or None; by nine squares of 128 pixels."""
    if min(pixels.shape[:2]) < SMALLEST_SIDE:
        return "too_small"
    green = crops(pixels, _SIZE, _VIEWS)[..., 1].astype(np.float32)
    if _correlation(green) < LEAST_CORRELATION:
        return "uncorrelated"
    residual = _residual(green)
    fine = (residual >= _PLAIN) & (residual < _FINE)
    if fine.mean(axis=(1, 2)).max() < LEAST_TEXTURE:
        return "too_plain"
    one, two = _in_tones(green)
    hard_edges = float((residual >= _HARD).mean())
    if two > MOST_IN_TWO_TONES or (one > MOST_IN_ONE_TONE and hard_edges > MOST_HARD_EDGES):
        return "two_tone"
    return None


def _residual(views: NDArray[np.float32]) -> NDArray[np.float32]:
    around = views[:, :-2, 1:-1] + views[:, 2:, 1:-1] + views[:, 1:-1, :-2] + views[:, 1:-1, 2:]
    return np.abs(views[:, 1:-1, 1:-1] - around / 4)


def _in_tones(views: NDArray[np.float32]) -> tuple[float, float]:
    """Return the shares of pixels in the commonest range of levels, and in that and the next one."""
    shares = np.bincount(views.astype(np.uint8).ravel(), minlength=256) / views.size
    first = np.convolve(shares, np.ones(17), "same")
    peak = int(first.argmax())
    rest = shares.copy()
    rest[max(0, peak - 16) : peak + 17] = 0
    second = np.convolve(rest, np.ones(17), "same").max()
    return float(first[peak]), float(first[peak] + second)


def _correlation(views: NDArray[np.float32]) -> float:
    centred = views - views.mean()
    variance = float(np.square(centred).mean())
    if variance < 1:
        return 1.0  # one colour: plain rather than uncorrelated
    return float((centred[:, :, :-1] * centred[:, :, 1:]).mean() / variance)
