"""Heat map and plots."""

import re

import pytest

from worker.contract.messages import ViewScore
from worker.web.heat_map import cells
from worker.web.plots import Bar, Interval, bar_plot, interval_plot, ticks


def view(x: int, y: int, score: float, side: int = 100) -> ViewScore:
    """Return a square view."""
    return ViewScore(x=x, y=y, width=side, height=side, score=score)


def test_views_that_overlap_are_cut_into_cells_with_their_mean() -> None:
    """Two views side by side that share half of their width: three cells."""
    found = cells([view(0, 0, 0.2), view(50, 0, 0.8)])
    assert [(cell.x, cell.width, round(cell.score, 2)) for cell in found] == [
        (0, 50, 0.2),
        (50, 50, 0.5),
        (100, 50, 0.8),
    ]
    assert all((cell.y, cell.height) == (0, 100) for cell in found)


def test_what_no_view_covers_has_no_cell() -> None:
    """Two views in opposite corners, and none at all."""
    assert [(cell.x, cell.y) for cell in cells([view(0, 0, 0.1), view(200, 200, 0.9)])] == [
        (0, 0),
        (200, 200),
    ]
    assert cells([]) == []


@pytest.mark.parametrize("largest", [0, 0.003, 0.7, 1, 3, 7, 99, 100, 1234])
def test_ticks_are_round_few_and_reach_the_largest_value(largest: float) -> None:
    """From 0 to at least the value, at most six."""
    scale = ticks(largest)
    assert scale[0] == 0
    assert scale[-1] >= largest
    assert 2 <= len(scale) <= 6
    assert all(value == int(value) for value in ticks(largest, whole=True))


def test_bars_are_as_high_as_their_values_and_labels_do_not_touch() -> None:
    """The highest of 24 bars is twice as high as another of half its value; fewer labels than bars."""
    plot = str(bar_plot([Bar(f"{n:02}:00", n) for n in range(24)], title="t", x_axis="x", y_axis="y"))
    heights = [float(found) for found in re.findall(r'class="bar"[^>]* height="([\d.]+)"', plot)]
    assert heights[22] == pytest.approx(2 * heights[11], abs=0.2)
    assert 6 <= len(re.findall(r">\d\d:00</text>", plot)) < 24


def test_bars_of_one_day_have_its_label_once() -> None:
    """Hours of four days, of which the first has only two."""
    hours = [
        Bar(f"Nov {day}", 1) for day, count in ((21, 2), (22, 24), (23, 24), (24, 24)) for _ in range(count)
    ]
    plot = str(bar_plot(hours, title="t", x_axis="x", y_axis="y"))
    assert re.findall(r">(Nov \d+)</text>", plot) == ["Nov 21", "Nov 23", "Nov 24"]


def test_an_interval_spans_from_its_lower_to_its_upper_end() -> None:
    """In per cent on an axis; text from outside is escaped."""
    plot = str(interval_plot([Interval("<b>", 0.5, 0.25, 0.75)], title="t", x_axis="x", whole=True))
    left, right = map(float, re.search(r'whisker" d="M([\d.]+) \d+H([\d.]+)', plot).groups())  # type: ignore[union-attr]
    middle = float(re.search(r'cx="([\d.]+)"', plot)[1])  # type: ignore[index]
    assert middle == pytest.approx((left + right) / 2, abs=0.2)
    assert "<b>" not in plot
