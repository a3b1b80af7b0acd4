"""Score a labelled corpus: which pictures are chosen, and what the detector says of each."""

import math
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detector.corpus.corpus import Sample
from detector.detector import Detector
from detector.evaluation.controls import as_is
from detector.images.decode import decode
from detector.images.degradations import Pixels

Rewrite = Callable[[Pixels, Sample], Pixels]

_BATCH = 16
_READERS = min(8, os.cpu_count() or 1)


class ScoringError(ValueError):
    """No figure can be had: a score is not a number, or a class has no picture."""


@dataclass(frozen=True)
class Scored:
    """One picture's truth, its family, its logit and its calibrated probability of *generated*, 0..1."""

    path: Path
    generated: bool
    family: str
    logit: float
    probability: float


def limited(samples: Sequence[Sample], limit: int, *, seed: int = 0) -> list[Sample]:
    """Choose at most `limit` samples (at least 2), the same in every run, families in proportion.

    Each class gets its share of the limit, and at least one picture.
    """
    if len(samples) <= limit:
        return list(samples)
    reals = sum(not sample.generated for sample in samples)
    for_reals = min(max(round(limit * reals / len(samples)), 1), limit - 1)
    chosen = {
        sample.path
        for generated, count in ((False, for_reals), (True, limit - for_reals))
        for sample in _spread([s for s in samples if s.generated == generated], seed)[:count]
    }
    return [sample for sample in samples if sample.path in chosen]


def score_samples(
    detector: Detector,
    samples: Sequence[Sample],
    rewrite: Rewrite = as_is,
    *,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Scored]:
    """Score every picture after `rewrite` has been at its pixels; the scores come in the samples' order.

    `progress` is told how many pictures were done. Raises `ScoringError` when a score is not finite, and
    `ImageRejectedError` for a picture that cannot be decoded.
    """

    def prepare(sample: Sample) -> NDArray[np.float32]:
        return detector.prepare(rewrite(decode(sample.path.read_bytes()).pixels, sample))

    batches = [samples[start : start + _BATCH] for start in range(0, len(samples), _BATCH)]
    scored: list[Scored] = []
    with ThreadPoolExecutor(_READERS) as pool:
        # One batch is read and prepared while the networks judge the one before.
        ahead = pool.map(prepare, batches[0] if batches else [])
        for index, batch in enumerate(batches):
            prepared = list(ahead)
            ahead = pool.map(prepare, batches[index + 1] if index + 1 < len(batches) else [])
            for sample, finding in zip(batch, detector.examine(prepared), strict=True):
                if not math.isfinite(finding.logit):
                    raise ScoringError(f"the score of {sample.path} is not a number")
                scored.append(
                    Scored(sample.path, sample.generated, sample.family, finding.logit, finding.probability)
                )
            progress(len(batch))
    return scored


def _spread(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """Order samples so that any beginning of the list holds the families in proportion."""
    families: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        families[sample.family].append(sample)
    rng = np.random.default_rng(seed)
    placed: list[tuple[float, str, Sample]] = []
    for family, own in sorted(families.items()):
        order = rng.permutation(len(own))
        placed += [((rank + 0.5) / len(own), family, own[index]) for rank, index in enumerate(order)]
    return [sample for _, _, sample in sorted(placed, key=lambda item: item[:2])]
