"""A plot of a simulated day: demand and capacity, workers, waits."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from deploy.simulation.simulation import Outcome
from worker.operations.capacity import WorkerModel

_GREEN, _AMBER, _RED, _QUIET = "#0f7b4f", "#a15c00", "#c02637", "#5c6570"
_MINUTE = 60


def draw_day(outcome: Outcome, worker: WorkerModel, title: str, path: Path) -> None:
    """Draw a day in three panels, minute by minute; the suffix of `path` chooses PNG or WebP."""
    hours = np.arange(len(outcome.arrived) // _MINUTE) / 60
    figure = Figure(figsize=(9, 6.6), dpi=90, layout="constrained")
    rate, workers, waits = figure.subplots(3, 1, sharex=True)
    figure.suptitle(title)
    rate.plot(hours, _minutes(outcome.arrived), color=_QUIET, linewidth=1, label="arriving")
    capacity = _minutes(outcome.ready) * worker.pictures_per_second
    rate.plot(hours, capacity, color=_GREEN, linewidth=1, label="capacity of ready workers")
    rate.set_ylabel("checks per second")
    workers.step(
        hours, _minutes(outcome.paid), color=_AMBER, linewidth=1, label="starting, ready or draining"
    )
    workers.step(hours, _minutes(outcome.ready), color=_GREEN, linewidth=1, label="ready")
    workers.set_ylabel("workers")
    waits.plot(hours, _longest_waits(outcome), color=_RED, linewidth=1, label="longest wait in the minute")
    waits.set_ylabel("seconds in the queue")
    waits.set_xlabel("hour of the day")
    waits.set_xlim(0, 24)
    waits.set_xticks(range(0, 25, 2))
    for axes in (rate, workers, waits):
        axes.set_ylim(0, 1.2 * axes.get_ylim()[1])
        axes.grid(color="#dfe3e8", linewidth=0.6)
        axes.legend(frameon=False, loc="upper left", ncols=2)
    kind = path.suffix.removeprefix(".").lower()
    figure.savefig(path, format=kind, pil_kwargs={} if kind == "webp" else {"optimize": True})


def _minutes(series: NDArray[np.float64]) -> NDArray[np.float64]:
    means: NDArray[np.float64] = series[: len(series) // _MINUTE * _MINUTE].reshape(-1, _MINUTE).mean(axis=1)
    return means


def _longest_waits(outcome: Outcome) -> NDArray[np.float64]:
    longest = np.zeros(len(outcome.arrived) // _MINUTE)
    minutes = np.minimum(outcome.arrived_at / _MINUTE, len(longest) - 1).astype(int)
    np.maximum.at(longest, minutes, outcome.waits)
    return longest
