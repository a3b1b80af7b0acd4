"""A picture with the scores of its views drawn over it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from detector.images.views import Rectangle

# ColorBrewer's RdBu, which people with colour blindness can read: blue for 0, white for 0.5, red for 1.
_SCORES = (0.0, 0.5, 1.0)
_COLOURS = ((33, 102, 172), (247, 247, 247), (178, 24, 43))
_OPACITY = 0.4
#: A view narrower or lower than this, in pixels of the heat map, has no room for its score.
_LABEL_SIDE = 48


def heatmap(
    picture: NDArray[np.uint8],
    views: Sequence[tuple[Rectangle, float]],
    strongest: int,
    *,
    max_side: int = 2048,
) -> NDArray[np.uint8]:
    """Draw the scores (0..1) of a picture's views over it, and outline the one with the index `strongest`.

    `picture` is (H, W, 3), the right way up; the result has at most `max_side` pixels a side. Where views
    overlap the colour is that of their mean; what no view covers keeps its own colours.
    """
    height, width = picture.shape[:2]
    scale = min(1.0, max_side / max(height, width))
    image = Image.fromarray(picture)
    if scale < 1:
        image = image.resize((max(1, round(width * scale)), max(1, round(height * scale))))
    drawn = [(_box(place, scale), score) for place, score in views]
    image = _coloured(image, drawn)
    _annotate(image, drawn, drawn[strongest][0])
    return np.asarray(image)


_Box = tuple[int, int, int, int]


def _box(place: Rectangle, scale: float) -> _Box:
    """Return left, top, right and bottom, of which the last two are outside."""
    return (
        round(place.x * scale),
        round(place.y * scale),
        round((place.x + place.width) * scale),
        round((place.y + place.height) * scale),
    )


def _coloured(image: Image.Image, views: Sequence[tuple[_Box, float]]) -> Image.Image:
    total = np.zeros((image.height, image.width), dtype=np.float32)
    count = np.zeros((image.height, image.width), dtype=np.uint8)
    for (left, top, right, bottom), score in views:
        total[top:bottom, left:right] += score
        count[top:bottom, left:right] += 1
    scores = total / np.maximum(count, 1)
    channels = [np.interp(scores, _SCORES, values).astype(np.uint8) for values in zip(*_COLOURS, strict=True)]
    opacity = np.where(count > 0, round(255 * _OPACITY), 0).astype(np.uint8)
    return Image.composite(Image.fromarray(np.stack(channels, axis=2)), image, Image.fromarray(opacity))


def _annotate(image: Image.Image, views: Sequence[tuple[_Box, float]], strongest: _Box) -> None:
    """Write each score into the upper left corner of its view, and outline the strongest."""
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(max(12, max(image.size) // 60))
    for (left, top, right, bottom), score in views:
        if min(right - left, bottom - top) >= _LABEL_SIDE:
            draw.text((left + 6, top + 4), f"{score:.2f}", "white", font, stroke_width=2, stroke_fill="black")
    left, top, right, bottom = strongest
    stroke = max(2, max(image.size) // 300)
    outer = (left, top, right - 1, bottom - 1)
    inner = tuple(edge + inset for edge, inset in zip(outer, (stroke, stroke, -stroke, -stroke), strict=True))
    draw.rectangle(outer, outline="black", width=stroke)
    if inner[0] < inner[2] and inner[1] < inner[3]:
        draw.rectangle(inner, outline="white", width=stroke)
