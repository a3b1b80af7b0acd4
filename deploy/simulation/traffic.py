"""A day of uploads: a daily rhythm with a given peak, and bursts on top."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DAY_SECONDS = 86_400

_BURST_SECONDS = 600
_STEEPEST = 60.0


@dataclass(frozen=True)
class Traffic:
    """A day's demand.

    `checks_a_day` in all; `peak_factor` the rhythm's highest rate over its mean, at 20:00; `bursts` sudden
    rises at random times, each to `burst_factor` times the rhythm for a moment and gone after ten minutes;
    the same `seed` gives the same day.
    """

    checks_a_day: float
    peak_factor: float = 2.0
    bursts: int = 6
    burst_factor: float = 2.0
    seed: int = 0

    @property
    def mean_rate(self) -> float:
        """Checks a second over the whole day."""
        return self.checks_a_day / DAY_SECONDS

    def rates(self) -> NDArray[np.float64]:
        """Return the expected checks in each second of the day, (86400,)."""
        seconds = np.arange(DAY_SECONDS, dtype=np.float64)
        rhythm = np.exp(
            _steepness(self.peak_factor) * (np.cos((seconds / DAY_SECONDS - 20 / 24) * 2 * np.pi) - 1)
        )
        random = np.random.default_rng(self.seed)
        raised = np.ones(DAY_SECONDS, dtype=np.float64)
        for start in random.integers(0, DAY_SECONDS, self.bursts):
            since = seconds - start
            # Up within half a minute, then away with a time constant of two minutes.
            shape = np.clip(since / 30, 0, 1) * np.exp(-np.clip(since - 30, 0, None) / 120)
            raised += (self.burst_factor - 1) * np.where((since >= 0) & (since < _BURST_SECONDS), shape, 0)
        rates: NDArray[np.float64] = rhythm * raised
        rates *= self.checks_a_day / rates.sum()
        return rates

    def arrivals(self) -> NDArray[np.int64]:
        """Draw the checks that come in each second of the day, (86400,), as a Poisson process."""
        counts: NDArray[np.int64] = np.random.default_rng(self.seed + 1).poisson(self.rates())
        return counts


def _steepness(peak_factor: float) -> float:
    """Return k for which exp(k (cos x - 1)) has `peak_factor` times its mean as its highest value."""
    angles = np.linspace(0, 2 * np.pi, 1441)[:-1]
    low, high = 0.0, _STEEPEST
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            (middle, high)
            if 1 / np.exp(middle * (np.cos(angles) - 1)).mean() < peak_factor
            else (low, middle)
        )
    return low
