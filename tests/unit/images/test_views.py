"""The places of views in a picture."""

import numpy as np
import pytest

from detector.bundle.manifest import Preprocessing
from detector.images.views import Rectangle, crop_places, crops
from worker.contract.messages import MAX_VIEWS


def test_views_are_an_even_grid_from_edge_to_edge_row_by_row() -> None:
    """Nine squares of 128 pixels in a picture of 512 x 300."""
    places = crop_places(300, 512, 128, 9)
    assert places == tuple(Rectangle(x, y, 128, 128) for y in (0, 86, 172) for x in (0, 192, 384))
    assert crop_places(300, 512, 128, 1) == (Rectangle(192, 86, 128, 128),)


@pytest.mark.parametrize(("height", "width"), [(300, 512), (40, 200), (33, 40)])
def test_a_view_shows_the_pixels_at_its_place(height: int, width: int) -> None:
    """What a picture is too small for is mirrored, and no part of the place."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    places = crop_places(height, width, 128, 4)
    for view, place in zip(crops(pixels, 128, 4), places, strict=True):
        assert 0 <= place.x <= place.x + place.width <= width
        assert 0 <= place.y <= place.y + place.height <= height
        seen = pixels[place.y : place.y + place.height, place.x : place.x + place.width]
        assert np.array_equal(view[: place.height, : place.width], seen)


def test_an_event_has_room_for_every_view_of_a_bundle() -> None:
    """The largest number that a manifest allows is the contract's limit."""
    allowed = Preprocessing.model_json_schema()["properties"]["views"]["enum"]
    assert max(allowed) == MAX_VIEWS
