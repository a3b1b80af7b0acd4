"""Batches of pictures for the classifier: balanced over classes and families, twins with one history."""

import hashlib
from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from detector.corpus.corpus import Sample
from detector.images.decode import decode

_DECODED_BYTES = 6 << 30


class History(Protocol):
    """What a picture goes through before the detector sees it, drawn at random whatever its label."""

    def __call__(self, pixels: NDArray[np.uint8], size: int, rng: Generator) -> NDArray[np.uint8]:
        """Return (size, size, 3) of `pixels` (H, W, 3)."""


@dataclass(frozen=True)
class PictureBatch:
    """`pictures` (B, S, S, 3) uint8 and `labels` (B,) float32, 1 for generated, in turn."""

    pictures: NDArray[np.uint8]
    labels: NDArray[np.float32]


class BalancedPictures:
    """Half real and half generated, each family by the square root of its size, pairs kept together.

    Both pictures of a pair get the same history and the same crop, so that what the generator did is all
    that tells them apart. Batch `i` is the same in every run with the same seed, wherever a run begins.
    Raises ValueError when a class is missing.
    """

    def __init__(self, samples: list[Sample], history: History, *, size: int, batch: int, seed: int) -> None:
        self._history, self._size, self._pairs, self._seed = history, size, batch // 2, seed
        self._decoded = _DecodedPictures(_DECODED_BYTES)
        families: dict[bool, dict[str, list[Sample]]] = {False: defaultdict(list), True: defaultdict(list)}
        for sample in samples:
            families[sample.generated][sample.family].append(sample)
        if not all(families.values()):
            raise ValueError("training needs pictures of both classes")
        self._families = {generated: list(named.values()) for generated, named in families.items()}
        # Square roots: small families are seen more often than their share, yet are not learned by heart.
        self._weights = {
            generated: np.sqrt([len(family) for family in listed])
            for generated, listed in self._families.items()
        }
        self._twins = _twins(samples)
        drawn_from = sorted((str(sample.path), sample.generated, sample.pair) for sample in samples)
        told = repr((drawn_from, history, size, batch, seed))
        self._digest = hashlib.sha256(told.encode()).hexdigest()[:16]

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits of the pictures' paths, the history, the sizes and the seed."""
        return self._digest

    def batch(self, index: int) -> PictureBatch:
        """Draw batch `index`."""
        rng = np.random.default_rng([self._seed, index])
        pictures: list[NDArray[np.uint8]] = []
        for _ in range(self._pairs):
            generated = self._draw(rng, generated=True)
            twin = self._twins.get(generated.path)
            real = twin or self._draw(rng, generated=False)
            seeds = rng.integers(0, 1 << 62, 2)
            if twin:
                seeds[1] = seeds[0]
            for sample, seed in zip((generated, real), seeds, strict=True):
                pixels = self._decoded[sample.path]
                pictures.append(self._history(pixels, self._size, np.random.default_rng(seed)))
        return PictureBatch(np.stack(pictures), np.tile(np.array([1, 0], dtype=np.float32), self._pairs))

    def _draw(self, rng: Generator, *, generated: bool) -> Sample:
        families, weights = self._families[generated], self._weights[generated]
        family = families[int(rng.choice(len(families), p=weights / weights.sum()))]
        return family[int(rng.integers(len(family)))]


class _DecodedPictures:
    """Decoded pixels by path, the least recently used forgotten beyond a budget of bytes."""

    def __init__(self, budget: int) -> None:
        self._budget, self._held = budget, 0
        self._pictures: OrderedDict[Path, NDArray[np.uint8]] = OrderedDict()

    def __getitem__(self, path: Path) -> NDArray[np.uint8]:
        pixels = self._pictures.pop(path, None)
        if pixels is None:
            pixels = decode(path.read_bytes()).pixels
            self._held += pixels.nbytes
        self._pictures[path] = pixels
        while self._held > self._budget and len(self._pictures) > 1:
            _, forgotten = self._pictures.popitem(last=False)
            self._held -= forgotten.nbytes
        return pixels


def _twins(samples: list[Sample]) -> dict[Path, Sample]:
    """Map each generated picture of a pair to the real one that it was made from."""
    real = {sample.pair: sample for sample in samples if sample.pair and not sample.generated}
    return {s.path: real[s.pair] for s in samples if s.generated and s.pair in real}
