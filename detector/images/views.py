"""Square views of a picture."""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from detector.images.doubt import Doubt


@dataclass(frozen=True)
class Rectangle:
    """A part of a picture, in pixels from its upper left corner, the right way up."""

    x: int
    y: int
    width: int
    height: int


class Pixels(Protocol):
    """An array (H, W, 3) uint8, or a picture that makes the part which is cut."""

    @property
    def shape(self) -> tuple[int, ...]:
        """H, W and 3."""

    def __getitem__(self, part: tuple[slice, slice], /) -> Any:
        """Return a part, (h, w, 3) uint8, by slices of rows and columns."""


@dataclass(frozen=True)
class PreparedPicture:
    """A picture whose views are cut."""

    #: (V, S, S, 3) uint8; for a squashed picture (1, 3, S, S) float32 around -1..1.
    views: NDArray[np.uint8] | NDArray[np.float32]
    #: Where each view is in the picture.
    places: tuple[Rectangle, ...]
    #: Why a score would say little about the picture; None for a picture of the usual kind.
    doubt: Doubt | None = None


def crop_places(height: int, width: int, size: int, views: int) -> tuple[Rectangle, ...]:
    """Return the places of `views` squares (1, 4, 9 or 16) in an even grid; a single one is in the middle.

    Rows come from top to bottom. A side is `size` pixels, or the picture's own where that is smaller.
    """
    count = math.isqrt(views)
    tops, lefts = (_offsets(max(side - size, 0), count) for side in (height, width))
    return tuple(Rectangle(left, top, min(size, width), min(size, height)) for top in tops for left in lefts)


def crops(pixels: Pixels, size: int, views: int) -> NDArray[np.uint8]:
    """Cut the squares at `crop_places` at the picture's own scale.

    Returns (views, size, size, 3). A picture smaller than `size` is mirrored at its right and lower edge,
    because resizing would blur the detail that the feature measures.
    """
    height, width = pixels.shape[:2]
    squares = np.empty((views, size, size, 3), dtype=np.uint8)
    for square, place in zip(squares, crop_places(height, width, size, views), strict=True):
        square[:] = mirrored(pixels[place.y : place.y + place.height, place.x : place.x + place.width], size)
    return squares


def mirrored(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Extend a picture (H, W, 3) by reflection until both sides have at least `size` pixels."""
    missing = [max(0, size - side) for side in pixels.shape[:2]]
    if not any(missing):
        return pixels
    return np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="symmetric")


#: Bytes that a picture's own pixels and `squashed` need for each of them.
SQUASHED_BYTES = 9


def squashed(pixels: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """Resize a whole picture (H, W, 3) to one square, as published: (1, 3, size, size) float32 around -1..1.

    Bicubic with antialiasing, as PyTorch computes it; overshoot at edges is kept.
    """
    import torch

    # One channel after the other: a large picture as float32 is four times its own size.
    channels = [
        torch.nn.functional.interpolate(
            torch.from_numpy(np.ascontiguousarray(pixels[None, None, :, :, channel])).float(),
            (size, size),
            mode="bicubic",
            antialias=True,
        )
        for channel in range(3)
    ]
    return (torch.cat(channels, dim=1) / 255 * 2 - 1).numpy()


def _offsets(slack: int, count: int) -> list[int]:
    if count == 1:
        return [slack // 2]
    return [round(slack * index / (count - 1)) for index in range(count)]
