"""A bank of crops on disk, drawn once: several of each picture, with their features, for every training."""

import hashlib
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor

from detector.corpus.corpus import Sample
from detector.progress import Pace, Progress
from detector.training.batches import CropMaker, batches_from

#: Computes the features (B, C, S, S) of crops (B, S, S, 3) uint8.
Compute = Callable[[Tensor], Tensor]

_FEATURES_AT_ONCE = 32


class CropBank:
    """A folder with `each` crops of every sample, in which trainings on any part of them find theirs.

    Crops are (N * each, S, S, 3) uint8, those of a sample side by side; features of a U-Net are
    (N * each, C, S, S) float16 in a file of their own. Crop `k` of both pictures of a pair is made alike.
    """

    def __init__(
        self, folder: Path, samples: Sequence[Sample], maker: CropMaker, each: int, seed: int
    ) -> None:
        """Open the bank. Raises ValueError when the folder holds other pictures or another recipe."""
        self._folder, self._maker, self._each, self._seed = folder, maker, each, seed
        self._samples = sorted(samples, key=_identity)
        self._index = {_identity(sample): number for number, sample in enumerate(self._samples)}
        content = repr(([(*_identity(s), s.pair) for s in self._samples], maker.recipe, each, seed))
        self._digest = hashlib.sha256(content.encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        if self._read_state("pictures").get("drawn", self._digest) != self._digest:
            raise ValueError(f"{folder} is the bank of other pictures, or of another recipe or seed")

    def fill(self, *, loaders: int = 1) -> None:
        """Draw the crops that are missing, with `loaders` processes."""
        total, done = len(self._samples), self._done("pictures")
        progress = Progress("bank_filled", total * self._each, done=done * self._each, part="pictures")
        pace = Pace()
        batches = batches_from(self._crops_of, done, loaders)
        for number in range(done, total):
            crops = next(batches)
            rows = self._open("pictures", (total * self._each, *crops.shape[1:]), np.uint8)
            rows[number * self._each : (number + 1) * self._each] = crops
            if pace.due() or number + 1 == total:
                self._write_state("pictures", number + 1)
            progress.advance(self._each)

    def fill_features(self, name: str, compute: Compute) -> None:
        """Compute the missing features of all crops into `name`.npy."""
        pictures, done = self.crops, self._done(name)
        progress = Progress("bank_filled", len(pictures), done=done, part=name)
        pace = Pace()
        for start in range(done, len(pictures), _FEATURES_AT_ONCE):
            features = compute(torch.from_numpy(np.array(pictures[start : start + _FEATURES_AT_ONCE])))
            rows = self._open(name, (len(pictures), *features.shape[1:]), np.float16)
            rows[start : start + _FEATURES_AT_ONCE] = features.cpu().numpy()
            end = min(start + _FEATURES_AT_ONCE, len(pictures))
            if pace.due() or end == len(pictures):
                self._write_state(name, end)
            progress.advance(end - start)

    @property
    def crops(self) -> NDArray[np.uint8]:
        """All crops, mapped from the disk."""
        stored: NDArray[np.uint8] = np.load(self._folder / "pictures.npy", mmap_mode="r")
        return stored

    def features(self, name: str) -> NDArray[np.float16]:
        """All features called `name`, mapped from the disk."""
        stored: NDArray[np.float16] = np.load(self._folder / f"{name}.npy", mmap_mode="r")
        return stored

    def row(self, sample: Sample, seed: int) -> int:
        """Return the row of one of a sample's crops; equal seeds choose crops that were made alike."""
        return self._index[_identity(sample)] * self._each + seed % self._each

    def _crops_of(self, number: int) -> NDArray[np.uint8]:
        """Return the crops (each, S, S, 3) of a sample; beyond the last one, which loaders ask for, any."""
        sample = self._samples[number % len(self._samples)]
        name = zlib.crc32((sample.pair or str(sample.path)).encode())
        seeds = np.random.default_rng([self._seed, name]).integers(0, 1 << 62, self._each)
        return np.stack([self._maker(sample, int(seed)) for seed in seeds])

    def _open(self, name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[np.generic]:
        path = self._folder / f"{name}.npy"
        if not path.exists():
            return open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        rows: NDArray[np.generic] = np.load(path, mmap_mode="r+")
        if rows.shape != shape:
            raise ValueError(f"{path} holds {rows.shape}, not {shape}: another recipe's bank")
        return rows

    def _done(self, name: str) -> int:
        return int(self._read_state(name).get("done", 0))

    def _read_state(self, name: str) -> dict[str, Any]:
        path = self._folder / f"{name}.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def _write_state(self, name: str, done: int) -> None:
        # Written after the rows: after a crash the rows since the last note are computed again.
        (self._folder / f"{name}.json").write_text(json.dumps({"done": done, "drawn": self._digest}))


def _identity(sample: Sample) -> tuple[str, str]:
    return str(sample.path), sample.twin
