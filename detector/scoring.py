"""Score a labelled corpus: choose the pictures and run the detector on each."""

import hashlib
import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from detector.corpus.corpus import Sample
from detector.detector import Detector, Finding
from detector.images.decode import decode
from detector.images.degradations import Pixels
from detector.images.doubt import Doubt
from detector.images.views import PreparedPicture

#: Changes a sample's pixels (H, W, 3) before they are scored.
Rewrite: TypeAlias = Callable[[Pixels, Sample], Pixels]

# A CPU gains nothing from more, and would be silent for a minute.
_BATCH_ON_CPU, _BATCH = 4, 16
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
    #: Why the score says little; None for a picture of the usual kind.
    doubt: Doubt | None = None
    #: Logits of the views, in the order of `crop_places`.
    views: tuple[float, ...] = ()


def as_is(pixels: Pixels, _: Sample) -> Pixels:
    """Return the pixels unchanged."""
    return pixels


class Score(NamedTuple):
    """What a detector says of a picture; see `Scored`."""

    logit: float
    probability: float
    doubt: Doubt | None
    views: tuple[float, ...]


class ScoreJournal:
    """Scores in a file, one JSON object per line, so that an interrupted run computes none of them twice.

    A score is found by its detector, its condition, and the name and content of its file. Without a `path`
    nothing is kept.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._scores: dict[str, Score] = {}
        if path and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                # The last line of a killed run may be incomplete, and another version's have other fields.
                with suppress(ValueError, KeyError, TypeError):
                    entry = json.loads(line)
                    score = Score(**entry["score"])
                    self._scores[entry["key"]] = score._replace(views=tuple(score.views))

    @staticmethod
    def key(detector: str, condition: str, sample: Sample, content: bytes) -> str:
        """Return the key of one score."""
        return "/".join((detector, condition, sample.path.name, hashlib.sha256(content).hexdigest()[:32]))

    def get(self, key: str) -> Score | None:
        """Return the score under `key`, if it is known."""
        return self._scores.get(key)

    def add(self, scores: dict[str, Score]) -> None:
        """Keep scores by their keys."""
        self._scores.update(scores)
        if self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                for key, score in scores.items():
                    file.write(json.dumps({"key": key, "score": score._asdict()}) + "\n")

    def remove(self) -> None:
        """Delete the file: the run is complete."""
        if self._path:
            self._path.unlink(missing_ok=True)


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
    condition: str = "",
    journal: ScoreJournal | None = None,
    identity: str | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Scored]:
    """Score every picture after `rewrite` changed its pixels; results are in the samples' order.

    Scores in the `journal` under this `condition`, and under the `identity` of the detector, by default the
    bundle's digest, are not computed again. `progress` is called with the size of each finished batch. Raises
    `ScoringError` when a score is not finite, and `ImageRejectedError` for a picture that cannot be decoded.
    """
    journal = journal or ScoreJournal()
    owner = f"{identity or detector.bundle.digest}/{detector.dtype}"

    def prepare(sample: Sample) -> tuple[str, PreparedPicture | None]:
        content = sample.path.read_bytes()
        key = journal.key(owner, condition, sample, content)
        if journal.get(key):
            return key, None
        return key, detector.prepare(rewrite(decode(content).pixels, sample))

    size = _BATCH_ON_CPU if detector.device == "cpu" else _BATCH
    batches = [samples[start : start + size] for start in range(0, len(samples), size)]
    scored: list[Scored] = []
    with ThreadPoolExecutor(_READERS) as pool:
        # The next batch is decoded while the networks run on this one.
        ahead = pool.map(prepare, batches[0] if batches else [])
        for index, batch in enumerate(batches):
            prepared = list(ahead)
            ahead = pool.map(prepare, batches[index + 1] if index + 1 < len(batches) else [])
            new = {key: views for key, views in prepared if views is not None}
            findings = detector.examine(list(new.values()))
            journal.add({key: _score(finding) for key, finding in zip(new, findings, strict=True)})
            for sample, (key, _) in zip(batch, prepared, strict=True):
                score = journal.get(key)
                if score is None or not math.isfinite(score.logit):
                    raise ScoringError(f"the score of {sample.path} is not a number")
                scored.append(Scored(sample.path, sample.generated, sample.family, *score))
            progress(len(batch))
    return scored


def _score(finding: Finding) -> Score:
    views = tuple(view.logit for view in finding.views)
    return Score(finding.logit, finding.probability, finding.doubt, views)


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
