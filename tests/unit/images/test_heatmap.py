"""Scores of views drawn over a picture."""

import numpy as np
from numpy.typing import NDArray

from detector.images.heatmap import heatmap
from detector.images.views import Rectangle

GREY = np.full((200, 300, 3), 128, dtype=np.uint8)


def _tint(drawn: NDArray[np.uint8], y: int, x: int) -> int:
    """Return by how much red exceeds blue around a point."""
    middle = drawn[y - 2 : y + 2, x - 2 : x + 2].astype(int)
    return int((middle[..., 0] - middle[..., 2]).mean())


def test_low_scores_are_blue_high_ones_red_and_the_rest_is_untouched() -> None:
    """Half-way is neither; where two views overlap their mean counts."""
    views = [
        (Rectangle(0, 0, 100, 100), 0.0),
        (Rectangle(100, 0, 100, 100), 0.5),
        (Rectangle(200, 0, 100, 100), 1.0),
        (Rectangle(0, 100, 60, 100), 0.0),
        (Rectangle(0, 100, 100, 100), 1.0),
    ]
    drawn = heatmap(GREY, views, 2)
    assert drawn.shape == GREY.shape
    assert _tint(drawn, 70, 50) < -20
    assert abs(_tint(drawn, 70, 150)) < 3
    assert _tint(drawn, 70, 250) > 20
    assert abs(_tint(drawn, 170, 30)) < 3
    assert _tint(drawn, 170, 85) > 20
    assert np.array_equal(drawn[105:, 105:], GREY[105:, 105:])
    assert not np.array_equal(drawn[20:80, 220:280], GREY[20:80, 220:280])


def test_only_the_strongest_view_is_outlined() -> None:
    """In black and white, so that it shows on every picture; its edge is that of its place."""
    views = [(Rectangle(10, 10, 100, 100), 0.4), (Rectangle(150, 60, 100, 100), 0.4)]
    drawn = heatmap(GREY, views, 1)
    left, top = 150, 60
    assert (drawn[top : top + 100, left] == 0).all()
    assert (drawn[top + 3 : top + 97, left + 2] == 255).all()
    assert (drawn[top + 99, left : left + 100] == 0).all()
    assert not (drawn[10:110, 10] == 0).any()


def test_a_large_picture_is_drawn_smaller_and_its_views_with_it() -> None:
    """Places scale with the picture."""
    picture = np.full((400, 4000, 3), 128, dtype=np.uint8)
    drawn = heatmap(picture, [(Rectangle(3000, 100, 256, 256), 1.0)], 0, max_side=1000)
    assert drawn.shape == (100, 1000, 3)
    assert (drawn[25:89, 750] == 0).all()
    assert np.array_equal(drawn[:, :740], np.full((100, 740, 3), 128))


def test_a_picture_smaller_than_a_view_is_outlined_at_its_edges() -> None:
    """Nine views at one place are one rectangle."""
    picture = np.full((33, 40, 3), 128, dtype=np.uint8)
    drawn = heatmap(picture, [(Rectangle(0, 0, 40, 33), 0.9)] * 9, 0)
    assert (drawn[0] == 0).all()
    assert (drawn[:, 39] == 0).all()
