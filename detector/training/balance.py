"""How often a training takes each picture, so that only the traces of generators tell the classes apart."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from detector.corpus.corpus import Sample


def balanced_weights(samples: Sequence[Sample]) -> NDArray[np.float64]:
    """Return a weight (N,) of each sample, with the mean 1, so that only traces tell the classes apart.

    Families of a class weigh the same, whatever their size; then both classes within each content, where it
    has both; then the classes altogether.
    """
    sizes = Counter((sample.family, sample.generated) for sample in samples)
    weights = np.array([1 / sizes[sample.family, sample.generated] for sample in samples])
    totals: defaultdict[tuple[str, bool], float] = defaultdict(float)
    for sample, weight in zip(samples, weights, strict=True):
        totals[sample.content, sample.generated] += float(weight)
    for index, sample in enumerate(samples):
        real, generated = totals[sample.content, False], totals[sample.content, True]
        # A content of one class says nothing of the traces, but its pictures do: they count a quarter.
        common = np.sqrt(real * generated) if real and generated else (real + generated) / 4
        weights[index] *= common / totals[sample.content, sample.generated]
    labels = np.array([sample.generated for sample in samples])
    for label in (False, True):
        weights[labels == label] /= weights[labels == label].sum()
    return np.asarray(weights / weights.mean())
