"""The curves of a training."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import structlog
from PIL import Image

from detector.training.curves import save_curves, smoothed


def test_the_smoothed_loss_is_the_mean_of_the_last_steps() -> None:
    """Computed by hand for a window of two; what is not finite is left out, and stays a gap where alone."""
    nan, infinite = math.nan, math.inf
    np.testing.assert_allclose(smoothed(np.array([4.0, 2.0, 0.0, 6.0]), 2), [4, 3, 1, 3])
    np.testing.assert_allclose(smoothed(np.array([nan, 4.0, infinite, nan]), 2), [nan, 4, 4, nan])


def test_curves_are_written_for_people_and_for_programs(tmp_path: Path) -> None:
    """The JSON has every step and every validation; the picture is a PNG that is not one flat colour."""
    picture = save_curves(tmp_path, "unet", [2.0, 1.0, 0.5], [[1, 0.5], [3, 0.75]], learning_rates=[1, 1, 0])
    record = json.loads((tmp_path / "unet-curves.json").read_text())
    assert record["loss"] == record["loss_smoothed"] == [2.0, 1.0, 0.5]
    assert record["validation"] == [{"step": 1, "value": 0.5}, {"step": 3, "value": 0.75}]
    assert record["learning_rate"] == [1.0, 1.0, 0.0]
    assert picture == tmp_path / "unet-curves.png"
    assert len(np.unique(np.asarray(Image.open(picture).convert("L")))) > 10


def test_a_panel_is_drawn_for_each_curve_that_there_is(tmp_path: Path) -> None:
    """The picture grows with the validation and with the learning rate."""
    heights = []
    for name, validation, rates in [("a", [], []), ("b", [[1, 0.5]], []), ("c", [[1, 0.5]], [1.0])]:
        picture = save_curves(tmp_path, name, [1.0], validation, learning_rates=rates)
        assert picture is not None
        heights.append(Image.open(picture).height)
    assert heights[0] < heights[1] < heights[2]


def test_values_that_are_not_numbers_are_null(tmp_path: Path) -> None:
    """A loss that overflowed leaves valid JSON and a gap, also when it is the only one."""
    for name, losses in [("some", [1.0, math.nan, math.inf]), ("all", [math.nan]), ("none", [])]:
        assert save_curves(tmp_path, name, losses, [[1, math.nan]])
        record = json.loads((tmp_path / f"{name}-curves.json").read_text(), parse_constant=pytest.fail)
        assert len(record["loss"]) == len(losses)
        assert record["validation"] == [{"step": 1, "value": None}]


def test_without_matplotlib_the_json_is_still_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long training must not end with an error over a picture: there is a warning event instead."""
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with structlog.testing.capture_logs() as events:
        assert save_curves(tmp_path, "unet", [1.0], []) is None
    assert [(event["event"], event["log_level"]) for event in events] == [("curves_not_drawn", "warning")]
    assert (tmp_path / "unet-curves.json").exists()
    assert not (tmp_path / "unet-curves.png").exists()
