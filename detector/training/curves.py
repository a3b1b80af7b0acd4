"""Training curves, as PNG and as JSON."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray

log = structlog.get_logger(__name__)

Values = NDArray[np.float64]

_INK, _FAINT, _MAIN, _SECOND = "#16191d", "#b9c2cc", "#1f6feb", "#0f7b4f"
_DOTS_UP_TO = 60


def save_curves(
    folder: Path, name: str, losses: Sequence[float], validation: Sequence[Sequence[float]]
) -> Path | None:
    """Write `name`-curves.json and `name`-curves.png to `folder`; return the picture's path.

    `losses` has the loss of each step, `validation` pairs of a step and its AUROC, 0..1. The smoothed loss is
    a moving average over a fiftieth of the steps. Values that are not finite are null in the JSON
    and gaps in the picture. Without matplotlib only the JSON is written, `curves_not_drawn` is logged as a
    warning and None is returned.
    """
    folder.mkdir(parents=True, exist_ok=True)
    raw = np.asarray(losses, dtype=np.float64)
    smooth = smoothed(raw, max(1, len(raw) // 50))
    held_out = np.asarray(validation, dtype=np.float64).reshape(-1, 2)
    record = {
        "name": name,
        "steps": len(raw),
        "loss": _numbers(raw),
        "loss_smoothed": _numbers(smooth),
        "validation": [
            {"step": int(step), "value": value}
            for step, value in zip(held_out[:, 0], _numbers(held_out[:, 1]), strict=True)
        ],
    }
    (folder / f"{name}-curves.json").write_text(json.dumps(record) + "\n")
    picture = folder / f"{name}-curves.png"
    try:
        _draw(picture, name, raw=raw, smooth=smooth, held_out=held_out)
    except ImportError as error:
        log.warning("curves_not_drawn", name=name, missing=error.name)
        return None
    return picture


def training_state(losses: Sequence[float], batch: int, seconds: float, progress: float) -> dict[str, float]:
    """Return the fields of a progress event: step, mean loss of 100 steps, rate and remaining minutes.

    `seconds` are those of the whole training, in which the share `progress` (0..1) of its budget was used up.
    """
    return {
        "step": len(losses),
        "loss": round(float(np.mean(losses[-100:])), 4),
        "pictures_per_second": round(len(losses) * batch / max(seconds, 1e-9), 1),
        "remaining_minutes": round(seconds / 60 * max(1 - progress, 0) / max(progress, 1e-9), 1),
    }


def smoothed(values: Values, window: int) -> Values:
    """Return the moving average (N,) of `values` (N,) over the last `window` of them, finite ones only."""
    finite = np.isfinite(values)
    sums = np.cumsum(np.where(finite, values, 0.0))
    counts = np.cumsum(finite).astype(np.float64)
    sums[window:] -= sums[:-window].copy()
    counts[window:] -= counts[:-window].copy()
    means: Values = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    return means


def _numbers(values: Values) -> list[float | None]:
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]


def _draw(picture: Path, name: str, *, raw: Values, smooth: Values, held_out: Values) -> None:
    from matplotlib.figure import Figure

    panels = 2 if len(held_out) else 1
    figure = Figure(figsize=(8, 1 + 2.6 * panels), dpi=120, layout="constrained", facecolor="white")
    axes = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    figure.suptitle(f"Training of {name}, {len(raw):,} steps", x=0.01, ha="left", color=_INK, weight="bold")
    steps = np.arange(1, len(raw) + 1)
    loss = axes[0]
    loss.plot(steps, raw, color=_FAINT, linewidth=0.6, label="each step")
    loss.plot(steps, smooth, color=_MAIN, linewidth=1.8, label="smoothed")
    if np.isfinite(raw).any():
        # The large losses of the first steps would flatten the rest of the curve.
        low, high = np.nanpercentile(np.where(np.isfinite(raw), raw, np.nan), [0, 99])
        loss.set_ylim(low - 0.05 * (high - low), high + 0.1 * (high - low) + 1e-9)
    loss.set_ylabel("Loss")
    loss.legend(frameon=False, loc="upper right", ncols=2)
    if len(held_out):
        axis = axes[1]
        dots = "o" if len(held_out) <= _DOTS_UP_TO else ""
        axis.plot(held_out[:, 0], held_out[:, 1], color=_SECOND, linewidth=1.4, marker=dots, markersize=3.5)
        axis.set_ylabel("Validation AUROC")
        if np.isfinite(held_out[:, 1]).any():
            step, value = held_out[int(np.nanargmax(held_out[:, 1]))]
            axis.axhline(value, color=_SECOND, linewidth=0.8, linestyle=":")
            axis.set_title(f"best {value:.3f} at step {int(step):,}", loc="right", fontsize=9, color=_SECOND)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#eceff3", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.tick_params(colors=_INK, labelsize=9)
    axes[-1].set_xlabel("Step")
    axes[-1].set_xlim(0, max(len(raw), 1))
    figure.align_ylabels(axes)
    figure.savefig(picture)
