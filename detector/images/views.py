"""Square views of a picture at its own scale."""

import math

import numpy as np
from numpy.typing import NDArray


def crops(pixels: NDArray[np.uint8], size: int, views: int) -> NDArray[np.uint8]:
    """Cut `views` (a square number) squares, evenly spaced in a grid, one alone from the middle.

    `pixels` is (H, W, 3); returns (views, size, size, 3). A picture smaller than `size` is mirrored at its
    edges: its own scale is kept, since resizing would blur what the feature looks for.
    """
    pixels = mirrored(pixels, size)
    count = math.isqrt(views)
    tops, lefts = (_places(side - size, count) for side in pixels.shape[:2])
    return np.stack([pixels[top : top + size, left : left + size] for top in tops for left in lefts])


def mirrored(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Extend a picture (H, W, 3) by reflection until both sides have at least `size` pixels."""
    missing = [max(0, size - side) for side in pixels.shape[:2]]
    if not any(missing):
        return pixels
    return np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="symmetric")


def _places(slack: int, count: int) -> list[int]:
    if count == 1:
        return [slack // 2]
    return [round(slack * index / (count - 1)) for index in range(count)]
