"""Metrics of scores against labels (1 = generated), for one set or for many bootstrap resamples of it."""

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
# Resamples are drawn in chunks of at most this many counts, which bounds the memory for large sets.
_COUNTS_PER_CHUNK = 2_000_000


class Ranking:
    """Scores (N,) sorted once, which makes metrics of many resamples cheap.

    Its methods take `counts` (R, N), how often each picture occurs in each of R resamples, and return the
    metric of each resample, (R,) in 0..1. Raises ValueError when a class is missing.
    """

    def __init__(self, scores: Scores, labels: Labels) -> None:
        if not len(labels) or labels.min() == labels.max():
            raise ValueError("metrics need pictures of both classes")
        self._order = np.argsort(scores, kind="stable")
        self._ties = np.flatnonzero(np.append(True, np.diff(scores[self._order]) != 0))
        self._generated = labels[self._order] == 1

    def auroc(self, counts: Counts) -> Scores:
        """Return the probability that a generated picture scores above a real one; ties count half."""
        generated, real = self._tied(counts)
        below = np.cumsum(real, axis=1) - real
        pairs = generated.sum(axis=1) * real.sum(axis=1)
        return np.asarray((generated * (below + real / 2)).sum(axis=1) / pairs)

    def average_precision(self, counts: Counts) -> Scores:
        """Return the mean precision over the generated pictures; tied scores share a threshold."""
        generated, real = self._tied(counts)
        hits = np.cumsum(generated[:, ::-1], axis=1)
        positives = np.maximum(hits + np.cumsum(real[:, ::-1], axis=1), 1)
        return np.asarray((generated[:, ::-1] * hits / positives).sum(axis=1) / generated.sum(axis=1))

    def tpr_at_fpr(self, counts: Counts, max_fpr: float) -> Scores:
        """Return the highest detection rate whose false positive rate is at most `max_fpr` (0..1)."""
        generated, real = self._tied(counts)
        total = real.sum(axis=1, keepdims=True)
        # 1e-9 keeps a product such as 0.05 * 60 from rounding down to 2.
        allowed = np.minimum(np.floor(max_fpr * total + 1e-9), total - 1)
        within = np.cumsum(real[:, ::-1], axis=1) <= allowed
        return np.asarray((generated[:, ::-1] * within).sum(axis=1) / generated.sum(axis=1))

    def _tied(self, counts: Counts) -> tuple[Counts, Counts]:
        """Return how many generated and real pictures have each distinct score, (R, scores), lowest first."""
        ranked = counts[:, self._order]
        generated = np.add.reduceat(ranked * self._generated, self._ties, axis=1)
        return generated, np.add.reduceat(ranked * ~self._generated, self._ties, axis=1)


def auroc(scores: Scores, labels: Labels) -> float:
    """Return the probability, 0..1, that a generated picture scores above a real one; ties count half.

    `scores` and `labels` have shape (N,). Raises ValueError when a class is missing.
    """
    return float(Ranking(scores, labels).auroc(once(labels))[0])


def calibration_errors(
    probabilities: Scores, labels: Labels, counts: Counts, *, balanced: bool = False
) -> Scores:
    """Return the expected calibration error of each resample, (R,); `counts` as for `Ranking`.

    The error is the mean gap, 0..1, between probability and frequency over ten bins of equal width. With
    `balanced` both classes have the same weight, as in a set with as many real as generated pictures.
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
    """One bin: its `count` of pictures, their mean `probability` and their share of generated ones, 0..1."""

    count: int
    probability: float
    frequency: float


def reliability(probabilities: Scores, labels: Labels) -> list[ReliabilityBin]:
    """Return the non-empty bins of the expected calibration error, lowest probability first."""
    inside = _binned(probabilities).astype(bool).T
    return [
        ReliabilityBin(int(own.sum()), float(probabilities[own].mean()), float(labels[own].mean()))
        for own in inside
        if own.any()
    ]


def roc(scores: Scores, labels: Labels) -> tuple[Scores, Scores]:
    """Return the ROC curve: false and true positive rates, 0..1, highest threshold first, from (0, 0)."""
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.diff(scores[order]) != 0, True)
    generated = labels[order] == 1
    false = np.cumsum(~generated)[last_of_tie] / (~generated).sum()
    true = np.cumsum(generated)[last_of_tie] / generated.sum()
    return np.append(0.0, false), np.append(0.0, true)


def once(labels: Labels) -> Counts:
    """Return the counts (1, N) of the set itself, in which each picture occurs once."""
    return np.ones((1, len(labels)))


def resamples(
    labels: Labels, *, rounds: int = ROUNDS, seed: int = 0, units: NDArray[np.int64] | None = None
) -> Iterator[Counts]:
    """Yield chunks of counts (R, N) of `rounds` bootstrap resamples, stratified by `labels` (N,).

    With `units` (N,), whole units are drawn instead of pictures: the pictures of one generator are alike, so
    for new generators there are as many observations as generators. The same labels, units and seed give the
    same resamples: paired comparisons of two detectors rely on it.
    """
    rng = np.random.default_rng(seed)
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    while rounds > 0:
        size = min(rounds, max(1, _COUNTS_PER_CHUNK // max(len(labels), 1)))
        counts = np.zeros((size, len(labels)))
        for members in classes:
            own = np.arange(len(members))
            if units is not None:
                own = np.unique(units[members], return_inverse=True)[1]
            several = own.max() + 1
            drawn = rng.integers(0, several, (size, several))
            times = np.zeros((size, several))
            np.add.at(times, (np.arange(size)[:, None], drawn), 1)
            counts[:, members] = times[:, own]
        yield counts
        rounds -= size


@dataclass(frozen=True)
class Interval:
    """A metric's `value` on the set itself, and its 95 % confidence interval from `low` to `high`."""

    value: float
    low: float
    high: float


def intervals(
    formulas: Mapping[str, Callable[[Counts], Scores]],
    labels: Labels,
    *,
    rounds: int = ROUNDS,
    units: NDArray[np.int64] | None = None,
) -> dict[str, Interval]:
    """Compute metrics with bootstrap intervals; each formula takes counts (R, N) and returns (R,).

    `labels` and `units` as for `resamples`.
    """
    values: dict[str, list[Scores]] = {name: [] for name in formulas}
    for counts in resamples(labels, rounds=rounds, units=units):
        for name, formula in formulas.items():
            values[name].append(formula(counts))
    measured: dict[str, Interval] = {}
    for name, formula in formulas.items():
        low, high = np.quantile(np.concatenate(values[name]), [0.025, 0.975])
        measured[name] = Interval(float(formula(once(labels))[0]), float(low), float(high))
    return measured


def share(hits: int, count: int) -> Interval:
    """Return the share of `hits` in `count` independent pictures with Wilson's score interval (Wilson 1927).

    A bootstrap interval would have no width at 0 of 9. Raises ValueError when there are no pictures.
    """
    if count < 1:
        raise ValueError("a share needs pictures")
    value, spread = hits / count, _NORMAL_975**2 / count
    centre = (value + spread / 2) / (1 + spread)
    half = math.sqrt(value * (1 - value) * spread + spread**2 / 4) / (1 + spread)
    return Interval(value, max(0.0, min(centre - half, value)), min(1.0, max(centre + half, value)))


def _binned(probabilities: Scores) -> NDArray[np.float64]:
    """Return the bin of each probability, one-hot (N, bins)."""
    index = np.minimum((probabilities * _BINS).astype(int), _BINS - 1)
    return np.asarray(np.eye(_BINS)[index])
