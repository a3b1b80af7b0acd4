"""Plots with axes, as SVG that the page's style sheet colours: bars over classes or times, and intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

_WIDTH, _HEIGHT = 460, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 12, 40
_TICKS = 4
_WIDEST = 48
_STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class Bar:
    """One bar: its class or time, its value, and whether it stands out."""

    #: On the axis.
    label: str
    value: float
    late: bool = False
    #: What the pointer shows; empty: the label.
    name: str = ""


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval; the plot draws one row for each."""

    label: str
    estimate: float
    low: float
    high: float


def ticks(largest: float, *, whole: bool = False) -> list[float]:
    """Return round numbers from 0 to at least `largest`, about five; whole numbers where asked for."""
    if largest <= 0:
        return [0.0, 1.0]
    rough = largest / _TICKS
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in _STEPS if factor * magnitude >= rough * (1 - 1e-9))
    if whole:
        step = max(1.0, math.ceil(step))
    count = math.ceil(largest / step - 1e-9)
    return [step * number for number in range(count + 1)]


def bar_plot(bars: Sequence[Bar], *, title: str, x_axis: str, y_axis: str, whole: bool = True) -> Markup:
    """Return a plot of numbers over classes, `whole` ones or others; a screen reader says `title` of it."""
    scale = ticks(max((bar.value for bar in bars), default=0), whole=whole)
    top = scale[-1]
    inner = _WIDTH - _LEFT - _RIGHT
    parts = [_open(title), *_horizontal_grid(scale)]
    slot = inner / max(1, len(bars))
    # A label stands at the first of the bars that share it; those that would touch each other are left out.
    longest = max((len(bar.label) for bar in bars), default=1)
    every = max(1, math.ceil((longest * 6.2 + 8) / slot))
    labelled, next_label = "", 0
    for number, bar in enumerate(bars):
        height = (_HEIGHT - _TOP - _BOTTOM) * bar.value / top
        x, width = _LEFT + slot * number, min(slot * 0.76, _WIDEST)
        parts.append(
            f'<rect class="bar{" late" if bar.late else ""}" x="{x + (slot - width) / 2:.1f}"'
            f' y="{_HEIGHT - _BOTTOM - height:.1f}" width="{width:.1f}" height="{height:.1f}">'
            f"<title>{escape(bar.name or bar.label)}: {bar.value:.4g}</title></rect>"
        )
        starts, labelled = bar.label != labelled, bar.label
        if starts and number >= next_label:
            next_label = number + every
            parts.append(
                f'<text x="{x + slot / 2:.1f}" y="{_HEIGHT - _BOTTOM + 15}" text-anchor="middle">'
                f"{escape(bar.label)}</text>"
            )
    parts.append(
        f'<path class="axis" d="M{_LEFT} {_HEIGHT - _BOTTOM}H{_WIDTH - _RIGHT}"/>'
        f'<text x="{_LEFT + inner / 2:.0f}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_axis)}</text>'
        f'<text x="12" y="{_TOP + (_HEIGHT - _TOP - _BOTTOM) / 2:.0f}" text-anchor="middle"'
        f' transform="rotate(-90 12 {_TOP + (_HEIGHT - _TOP - _BOTTOM) / 2:.0f})">{escape(y_axis)}</text>'
        "</svg>"
    )
    return Markup("".join(parts))  # noqa: S704  # nosec B704 - every text is escaped


def interval_plot(rows: Sequence[Interval], *, title: str, x_axis: str, whole: bool = False) -> Markup:
    """Return shares, 0..1, as points with their intervals on one axis in per cent, `whole` up to 100."""
    scale = ticks(100 if whole else 100 * max((row.high for row in rows), default=0))
    left, bottom = 118, 40
    height = _TOP + 34 * max(1, len(rows)) + bottom
    inner = _WIDTH - left - 20

    def x(share: float) -> float:
        return left + inner * 100 * share / scale[-1]

    parts = [_open(title, height)]
    parts += [
        f'<path class="grid" d="M{x(tick / 100):.1f} {_TOP}V{height - bottom}"/>'
        f'<text x="{x(tick / 100):.1f}" y="{height - bottom + 15}" text-anchor="middle">{tick:g}</text>'
        for tick in scale
    ]
    for number, row in enumerate(rows):
        y = _TOP + 34 * number + 17
        words = f"{row.label}: {row.estimate:.2%}, {row.low:.2%} to {row.high:.2%}"
        parts.append(
            f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{escape(row.label)}</text>'
            f'<path class="whisker" d="M{x(row.low):.1f} {y}H{x(row.high):.1f}'
            f'M{x(row.low):.1f} {y - 5}v10M{x(row.high):.1f} {y - 5}v10"/>'
            f'<circle class="point" cx="{x(row.estimate):.1f}" cy="{y}" r="4.5">'
            f"<title>{escape(words)}</title></circle>"
        )
    parts.append(
        f'<path class="axis" d="M{left} {height - bottom}H{_WIDTH - 20}"/>'
        f'<text x="{left + inner / 2:.0f}" y="{height - 6}" text-anchor="middle">{escape(x_axis)}</text>'
        "</svg>"
    )
    return Markup("".join(parts))  # noqa: S704  # nosec B704 - every text is escaped


def _open(title: str, height: int = _HEIGHT) -> str:
    return f'<svg class="plot" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">'


def _horizontal_grid(scale: Sequence[float]) -> list[str]:
    inner = _HEIGHT - _TOP - _BOTTOM
    parts = []
    for tick in scale:
        y = _HEIGHT - _BOTTOM - inner * tick / scale[-1]
        parts.append(
            f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>'
            f'<text x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
        )
    return parts
