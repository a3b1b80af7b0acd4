"""Training curves."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import structlog
from PIL import Image

from detector.training.curves import save_curves, smoothed


def test_the_smoothed_loss_is_a_moving_average() -> None:
    """Computed by hand for a window of two; values that are not finite are skipped, or gaps where alone."""
    nan, infinite = math.nan, math.inf
    np.testing.assert_allclose(smoothed(np.array([4.0, 2.0, 0.0, 6.0]), 2), [4, 3, 1, 3])
    np.testing.assert_allclose(smoothed(np.array([nan, 4.0, infinite, nan]), 2), [nan, 4, 4, nan])


def test_curves_are_written_as_json_and_png(tmp_path: Path) -> None:
    """The JSON has every step and every validation; the PNG is not a single flat colour."""
    picture = save_curves(tmp_path, "unet", [2.0, 1.0, 0.5], [[1, 0.5], [3, 0.75]])
    record = json.loads((tmp_path / "unet-curves.json").read_text())
    assert record["loss"] == record["loss_smoothed"] == [2.0, 1.0, 0.5]
    assert record["validation"] == [{"step": 1, "value": 0.5}, {"step": 3, "value": 0.75}]
    assert picture == tmp_path / "unet-curves.png"
    assert len(np.unique(np.asarray(Image.open(picture).convert("L")))) > 10


def test_the_validation_has_a_panel_of_its_own(tmp_path: Path) -> None:
    """The picture is taller with it."""
    heights = []
    for name, validation in [("a", []), ("b", [[1, 0.5]])]:
        picture = save_curves(tmp_path, name, [1.0], validation)
        assert picture is not None
        heights.append(Image.open(picture).height)
    assert heights[0] < heights[1]


def test_values_that_are_not_numbers_are_null(tmp_path: Path) -> None:
    """A loss that overflowed leaves valid JSON and a gap, even when it is the only one."""
    for name, losses in [("some", [1.0, math.nan, math.inf]), ("all", [math.nan]), ("none", [])]:
        assert save_curves(tmp_path, name, losses, [[1, math.nan]])
        record = json.loads((tmp_path / f"{name}-curves.json").read_text(), parse_constant=pytest.fail)
        assert len(record["loss"]) == len(losses)
        assert record["validation"] == [{"step": 1, "value": None}]


def test_without_matplotlib_only_the_json_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing library must not fail a long training: it is logged as a warning event."""
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with structlog.testing.capture_logs() as events:
        assert save_curves(tmp_path, "unet", [1.0], []) is None
    assert [(event["event"], event["log_level"]) for event in events] == [("curves_not_drawn", "warning")]
    assert (tmp_path / "unet-curves.json").exists()
    assert not (tmp_path / "unet-curves.png").exists()
