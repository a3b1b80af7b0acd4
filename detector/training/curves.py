"""The curves of a training, for people as PNG and for programs as JSON."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray

log = structlog.get_logger()

Values = NDArray[np.float64]

_INK, _FAINT, _MAIN, _SECOND = "#16191d", "#b9c2cc", "#1f6feb", "#0f7b4f"
_DOTS_UP_TO = 60


def save_curves(
    folder: Path,
    name: str,
    losses: Sequence[float],
    validation: Sequence[Sequence[float]],
    *,
    learning_rates: Sequence[float] = (),
    measure: str = "AUROC",
) -> Path | None:
    """Write `name`-curves.json and `name`-curves.png to `folder`; return the picture's path.

    `losses` has the loss of each step, `validation` pairs of a step and the `measure` (0..1) there, and
    `learning_rates` the rate of each step. The smoothed loss is the mean over the last fiftieth of the steps
    up to each one. Values that are not finite are null in the JSON and gaps in the picture. Without
    matplotlib the JSON alone is written, None is returned and `curves_not_drawn` is a warning event.
    """
    folder.mkdir(parents=True, exist_ok=True)
    raw = np.asarray(losses, dtype=np.float64)
    smooth = smoothed(raw, max(1, len(raw) // 50))
    held_out = np.asarray(validation, dtype=np.float64).reshape(-1, 2)
    rates = np.asarray(learning_rates, dtype=np.float64)
    record = {
        "name": name,
        "steps": len(raw),
        "measure": measure,
        "loss": _numbers(raw),
        "loss_smoothed": _numbers(smooth),
        "validation": [
            {"step": int(step), "value": value}
            for step, value in zip(held_out[:, 0], _numbers(held_out[:, 1]), strict=True)
        ],
        "learning_rate": _numbers(rates),
    }
    (folder / f"{name}-curves.json").write_text(json.dumps(record) + "\n")
    picture = folder / f"{name}-curves.png"
    try:
        _draw(picture, name, measure, raw=raw, smooth=smooth, held_out=held_out, rates=rates)
    except ImportError as error:
        log.warning("curves_not_drawn", name=name, missing=error.name)
        return None
    return picture


def smoothed(values: Values, window: int) -> Values:
    """Return the mean of the finite ones among the last `window` values at each place, same shape (N,)."""
    finite = np.isfinite(values)
    sums = np.cumsum(np.where(finite, values, 0.0))
    counts = np.cumsum(finite).astype(np.float64)
    sums[window:] -= sums[:-window].copy()
    counts[window:] -= counts[:-window].copy()
    means: Values = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    return means


def _numbers(values: Values) -> list[float | None]:
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]


def _draw(
    picture: Path, name: str, measure: str, *, raw: Values, smooth: Values, held_out: Values, rates: Values
) -> None:
    from matplotlib.figure import Figure

    panels = [True, bool(len(held_out)), bool(len(rates))]
    figure = Figure(figsize=(8, 1 + 2.6 * sum(panels)), dpi=120, layout="constrained", facecolor="white")
    axes = figure.subplots(sum(panels), 1, sharex=True, squeeze=False)[:, 0]
    figure.suptitle(f"Training of {name}, {len(raw):,} steps", x=0.01, ha="left", color=_INK, weight="bold")
    steps = np.arange(1, len(raw) + 1)
    remaining = iter(axes)
    loss = next(remaining)
    loss.plot(steps, raw, color=_FAINT, linewidth=0.6, label="each step")
    loss.plot(steps, smooth, color=_MAIN, linewidth=1.8, label="smoothed")
    if np.isfinite(raw).any():
        # The first steps of a training would leave the rest of it on the floor of the picture.
        low, high = np.nanpercentile(np.where(np.isfinite(raw), raw, np.nan), [0, 99])
        loss.set_ylim(low - 0.05 * (high - low), high + 0.1 * (high - low) + 1e-9)
    loss.set_ylabel("Loss")
    loss.legend(frameon=False, loc="upper right", ncols=2)
    if len(held_out):
        axis = next(remaining)
        dots = "o" if len(held_out) <= _DOTS_UP_TO else ""
        axis.plot(held_out[:, 0], held_out[:, 1], color=_SECOND, linewidth=1.4, marker=dots, markersize=3.5)
        axis.set_ylabel(f"Validation {measure}")
        if np.isfinite(held_out[:, 1]).any():
            step, value = held_out[int(np.nanargmax(held_out[:, 1]))]
            axis.axhline(value, color=_SECOND, linewidth=0.8, linestyle=":")
            axis.set_title(f"best {value:.3f} at step {int(step):,}", loc="right", fontsize=9, color=_SECOND)
    if len(rates):
        axis = next(remaining)
        axis.plot(np.arange(1, len(rates) + 1), rates, color=_INK, linewidth=1.4)
        axis.set_ylabel("Learning rate")
        axis.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        axis.set_ylim(bottom=0)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#eceff3", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.tick_params(colors=_INK, labelsize=9)
    axes[-1].set_xlabel("Step")
    axes[-1].set_xlim(0, max(len(raw), 1))
    figure.align_ylabels(axes)
    figure.savefig(picture)
