"""A day of uploads: a daily rhythm with a given peak, and bursts on top."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from worker.operations.capacity import DAY_SECONDS

_BURST_SECONDS = 600
_MAX_STEEPNESS = 60.0


@dataclass(frozen=True)
class Traffic:
    """The demand of one day.

    The rhythm peaks at 20:00 with `peak_factor` times its mean. Each of `bursts` rises, at a random time, to
    `burst_factor` times the rhythm and is over after ten minutes. The same `seed` gives the same day.
    """

    checks_per_day: float
    peak_factor: float = 2.0
    bursts: int = 6
    burst_factor: float = 2.0
    seed: int = 0

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
            # Rises within half a minute, then decays with a time constant of two minutes.
            shape = np.clip(since / 30, 0, 1) * np.exp(-np.clip(since - 30, 0, None) / 120)
            raised += (self.burst_factor - 1) * np.where((since >= 0) & (since < _BURST_SECONDS), shape, 0)
        rates: NDArray[np.float64] = rhythm * raised
        rates *= self.checks_per_day / rates.sum()
        return rates

    def arrivals(self) -> NDArray[np.int64]:
        """Draw the checks that arrive in each second of the day, (86400,), from a Poisson process."""
        counts: NDArray[np.int64] = np.random.default_rng(self.seed + 1).poisson(self.rates())
        return counts


def _steepness(peak_factor: float) -> float:
    """Return k for which the maximum of exp(k (cos x - 1)) is `peak_factor` times its mean."""
    angles = np.linspace(0, 2 * np.pi, 1441)[:-1]
    low, high = 0.0, _MAX_STEEPNESS
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            (middle, high)
            if 1 / np.exp(middle * (np.cos(angles) - 1)).mean() < peak_factor
            else (low, middle)
        )
    return low
