"""Figures of merit of scores against labels (1 = generated), for one set or for many resamples of it."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
Labels = NDArray[np.int64]
Counts = NDArray[np.float64]

ROUNDS = 1000
# The 97.5th percentile of the normal distribution.
_NORMAL_975 = 1.959964
_BINS = 10
# A chunk of resamples holds at most this many counts, so that a large set does not fill the memory.
_COUNTS_AT_ONCE = 2_000_000


class Ranking:
    """Scores (N,) ranked once, so that the figures of many resamples of the pictures are cheap.

    Its methods take `counts` (R, N), how often each picture occurs in each of R resamples, and return the
    figure of each resample, (R,) in 0..1. Raises ValueError when a class is missing.
    """

    def __init__(self, scores: Scores, labels: Labels) -> None:
        if not len(labels) or labels.min() == labels.max():
            raise ValueError("a figure needs pictures of both classes")
        self._order = np.argsort(scores, kind="stable")
        self._ties = np.flatnonzero(np.append(True, np.diff(scores[self._order]) != 0))
        self._generated = labels[self._order] == 1

    def auroc(self, counts: Counts) -> Scores:
        """Return the chance that a generated picture scores above a real one; ties count half."""
        generated, real = self._tied(counts)
        below = np.cumsum(real, axis=1) - real
        pairs = generated.sum(axis=1) * real.sum(axis=1)
        return np.asarray((generated * (below + real / 2)).sum(axis=1) / pairs)

    def average_precision(self, counts: Counts) -> Scores:
        """Return the mean precision at each generated picture, by falling score; ties share a threshold."""
        generated, real = self._tied(counts)
        hits = np.cumsum(generated[:, ::-1], axis=1)
        called = np.maximum(hits + np.cumsum(real[:, ::-1], axis=1), 1)
        return np.asarray((generated[:, ::-1] * hits / called).sum(axis=1) / generated.sum(axis=1))

    def tpr_at_fpr(self, counts: Counts, budget: float) -> Scores:
        """Return the share of generated pictures found while at most `budget` (0..1) of reals are accused."""
        generated, real = self._tied(counts)
        reals = real.sum(axis=1, keepdims=True)
        # The sum keeps 0.05 * 60 from being floored to 2 by its last binary digit.
        allowed = np.minimum(np.floor(budget * reals + 1e-9), reals - 1)
        called = np.cumsum(real[:, ::-1], axis=1) <= allowed
        return np.asarray((generated[:, ::-1] * called).sum(axis=1) / generated.sum(axis=1))

    def _tied(self, counts: Counts) -> tuple[Counts, Counts]:
        """Return how many generated and real pictures share each score, (R, scores), by rising score."""
        ranked = counts[:, self._order]
        generated = np.add.reduceat(ranked * self._generated, self._ties, axis=1)
        return generated, np.add.reduceat(ranked * ~self._generated, self._ties, axis=1)


def auroc(scores: Scores, labels: Labels) -> float:
    """Return the chance, 0..1, that a generated picture scores above a real one; ties count half.

    `scores` and `labels` have shape (N,). Raises ValueError when a class is missing.
    """
    return float(Ranking(scores, labels).auroc(once(labels))[0])


def average_precision(scores: Scores, labels: Labels) -> float:
    """Return the mean precision at each generated picture, 0..1, by falling score; ties share a threshold."""
    return float(Ranking(scores, labels).average_precision(once(labels))[0])


def tpr_at_fpr(scores: Scores, labels: Labels, budget: float) -> float:
    """Return the share of generated pictures found when at most `budget` (0..1) of the reals are accused."""
    return float(Ranking(scores, labels).tpr_at_fpr(once(labels), budget)[0])


def expected_calibration_error(probabilities: Scores, labels: Labels) -> float:
    """Return the mean gap, 0..1, between probability and frequency over ten bins of equal width."""
    return float(calibration_errors(probabilities, labels, once(labels))[0])


def calibration_errors(
    probabilities: Scores, labels: Labels, counts: Counts, *, balanced: bool = False
) -> Scores:
    """Return the expected calibration error of each resample, (R,); `counts` as for `Ranking`.

    `balanced` weighs both classes alike: the error that a set with as many reals as generated would have.
    """
    if balanced:
        generated = labels == 1
        counts = counts * np.where(
            generated,
            0.5 / counts[:, generated].sum(axis=1, keepdims=True),
            0.5 / counts[:, ~generated].sum(axis=1, keepdims=True),
        )
    gaps = np.abs(counts @ (_binned(probabilities) * (probabilities - labels)[:, None]))
    return np.asarray(gaps.sum(axis=1) / counts.sum(axis=1))


@dataclass(frozen=True)
class ReliabilityBin:
    """The pictures of one bin: their `count`, mean `probability` and the `frequency` of generated, 0..1."""

    count: int
    probability: float
    frequency: float


def reliability(probabilities: Scores, labels: Labels) -> list[ReliabilityBin]:
    """Return the bins behind the expected calibration error that hold pictures, by rising probability."""
    inside = _binned(probabilities).astype(bool).T
    return [
        ReliabilityBin(int(own.sum()), float(probabilities[own].mean()), float(labels[own].mean()))
        for own in inside
        if own.any()
    ]


def roc(scores: Scores, labels: Labels) -> tuple[Scores, Scores]:
    """Return the ROC curve: false and true positive rates, 0..1, by falling threshold, from (0, 0)."""
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.diff(scores[order]) != 0, True)
    generated = labels[order] == 1
    false = np.cumsum(~generated)[last_of_tie] / (~generated).sum()
    true = np.cumsum(generated)[last_of_tie] / generated.sum()
    return np.append(0.0, false), np.append(0.0, true)


def once(labels: Labels) -> Counts:
    """Return the counts (1, N) of the set itself: each picture occurs once."""
    return np.ones((1, len(labels)))


def resamples(labels: Labels, *, rounds: int = ROUNDS, seed: int = 0) -> Iterator[Counts]:
    """Yield the counts (R, N) of bootstrap resamples, `rounds` in all, each class resampled by itself.

    The same labels and seed give the same resamples, so that two detectors are compared on the same ones.
    """
    rng = np.random.default_rng(seed)
    places = [np.flatnonzero(labels == label) for label in (0, 1)]
    while rounds > 0:
        size = min(rounds, max(1, _COUNTS_AT_ONCE // max(len(labels), 1)))
        counts = np.zeros((size, len(labels)))
        for own in places:
            drawn = rng.choice(own, (size, len(own)))
            np.add.at(counts, (np.arange(size)[:, None], drawn), 1)
        yield counts
        rounds -= size


@dataclass(frozen=True)
class Interval:
    """A figure's `value` on the set itself, and its 95 % interval from `low` to `high`."""

    value: float
    low: float
    high: float


def intervals(
    formulas: Mapping[str, Callable[[Counts], Scores]], labels: Labels, *, rounds: int = ROUNDS
) -> dict[str, Interval]:
    """Compute figures with their bootstrap intervals; each formula takes counts (R, N) and returns (R,)."""
    values: dict[str, list[Scores]] = {name: [] for name in formulas}
    for counts in resamples(labels, rounds=rounds):
        for name, formula in formulas.items():
            values[name].append(formula(counts))
    return {
        name: Interval(float(formula(once(labels))[0]), *_middle(np.concatenate(values[name])))
        for name, formula in formulas.items()
    }


def share(hits: int, count: int) -> Interval:
    """Return a share of `count` independent pictures with Wilson's score interval (Wilson 1927).

    Resampling would claim certainty for none of nine. Raises ValueError when there are no pictures.
    """
    if count < 1:
        raise ValueError("a share needs pictures")
    value, spread = hits / count, _NORMAL_975**2 / count
    centre = (value + spread / 2) / (1 + spread)
    half = math.sqrt(value * (1 - value) * spread + spread**2 / 4) / (1 + spread)
    return Interval(value, max(0.0, min(centre - half, value)), min(1.0, max(centre + half, value)))


def _middle(values: Scores) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _binned(probabilities: Scores) -> NDArray[np.float64]:
    """Return which bin each probability falls in, (N, bins) of zeros and ones."""
    place = np.minimum((probabilities * _BINS).astype(int), _BINS - 1)
    return np.asarray(np.eye(_BINS)[place])
