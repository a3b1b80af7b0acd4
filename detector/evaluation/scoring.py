"""Score a labelled corpus: choose the pictures and run the detector on each."""

import math
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detector.corpus.corpus import Sample
from detector.detector import Detector
from detector.evaluation.conditions import Rewrite, as_is
from detector.images.decode import decode
from detector.images.views import PreparedPicture

_BATCH = 16
_READERS = min(8, os.cpu_count() or 1)


class ScoringError(ValueError):
    """Nothing can be measured: a score is not a number, or a class has no pictures."""


@dataclass(frozen=True)
class Scored:
    """A scored picture with its label."""

    path: Path
    generated: bool
    family: str
    logit: float
    #: Calibrated probability of *generated*, 0..1.
    probability: float


def limited(samples: Sequence[Sample], limit: int, *, seed: int = 0) -> list[Sample]:
    """Choose at most `limit` samples (at least 2), stratified by family, the same in every run.

    Each class keeps its share, and at least one picture.
    """
    if len(samples) <= limit:
        return list(samples)
    real = sum(not sample.generated for sample in samples)
    real_limit = min(max(round(limit * real / len(samples)), 1), limit - 1)
    chosen = {
        sample.path
        for generated, count in ((False, real_limit), (True, limit - real_limit))
        for sample in _stratified([s for s in samples if s.generated == generated], seed)[:count]
    }
    return [sample for sample in samples if sample.path in chosen]


def score_samples(
    detector: Detector,
    samples: Sequence[Sample],
    rewrite: Rewrite = as_is,
    *,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Scored]:
    """Score every picture after `rewrite` changed its pixels; results are in the samples' order.

    `progress` is called with the size of each finished batch. Raises `ScoringError` when a score is not
    finite, and `ImageRejectedError` for a picture that cannot be decoded.
    """

    def prepare(sample: Sample) -> PreparedPicture:
        return detector.prepare(rewrite(decode(sample.path.read_bytes()).pixels, sample))

    batches = [samples[start : start + _BATCH] for start in range(0, len(samples), _BATCH)]
    scored: list[Scored] = []
    with ThreadPoolExecutor(_READERS) as pool:
        # The next batch is decoded while the networks run on this one.
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


def _stratified(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """Order samples so that every prefix of the list has the families in proportion."""
    families: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        families[sample.family].append(sample)
    rng = np.random.default_rng(seed)
    keyed: list[tuple[float, str, Sample]] = []
    for family, members in sorted(families.items()):
        order = rng.permutation(len(members))
        keyed += [((rank + 0.5) / len(members), family, members[i]) for rank, i in enumerate(order)]
    return [sample for _, _, sample in sorted(keyed, key=lambda item: item[:2])]
