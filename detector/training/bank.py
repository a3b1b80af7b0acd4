"""A bank of crops and their features on disk, computed once and reused in every epoch."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor

from detector.progress import Progress
from detector.training.batches import BalancedPictures, batches_from

#: Computes the features (B, C, S, S) of crops (B, S, S, 3) uint8.
Compute = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class StoredBatch:
    """`pictures` (B, S, S, 3) uint8, `features` (B, C, S, S) float16 if stored, `labels` (B,) float32."""

    pictures: NDArray[np.uint8]
    features: NDArray[np.float16] | None
    labels: NDArray[np.float32]


class FeatureBank:
    """A folder of `crops` pictures and, for features of a U-Net, those in float16.

    Pictures are (N, S, S, 3) uint8 with alternating labels, 1 for generated first; features are (N, C, S, S).
    Classifiers on several features can share the pictures.
    """

    def __init__(self, folder: Path, crops: int) -> None:
        self._folder, self._crops = folder, crops
        folder.mkdir(parents=True, exist_ok=True)

    def fill(
        self,
        pictures: BalancedPictures,
        batch: int,
        compute: Compute | None,
        name: str,
        *,
        loaders: int = 1,
    ) -> None:
        """Draw the crops with `loaders` processes and compute features into `name`.npy, or resume.

        Raises ValueError when the folder holds crops of other pictures or of another recipe.
        """
        self._fill_pictures(pictures, batch, loaders)
        if compute:
            self._fill_features(batch, compute, name)

    def batches(self, name: str | None, batch: int, *, first: int, seed: int) -> Iterator[StoredBatch]:
        """Yield batches of `batch` crops from number `first` on, with the features called `name` if given.

        Each epoch has its own order, which keeps pairs together. Half of the batches are mirrored.
        """
        pictures = np.load(self._folder / "pictures.npy", mmap_mode="r")
        features = np.load(self._folder / f"{name}.npy", mmap_mode="r") if name else None
        pairs, per_batch = self._crops // 2, batch // 2
        per_epoch = pairs // per_batch
        while True:
            rng = np.random.default_rng([seed, first // per_epoch])
            order = rng.permutation(pairs)[first % per_epoch * per_batch :][:per_batch]
            rows = np.sort(np.concatenate([order * 2, order * 2 + 1]))
            mirrored = np.random.default_rng([seed, first, 1]).random() < 0.5  # noqa: PLR2004
            yield StoredBatch(
                _rows_of(pictures, rows, -2 if mirrored else None),
                None if features is None else _rows_of(features, rows, -1 if mirrored else None),
                (rows % 2 == 0).astype(np.float32),
            )
            first += 1

    def _fill_pictures(self, pictures: BalancedPictures, batch: int, loaders: int) -> None:
        digest = self._read_state("pictures").get("drawn", pictures.digest)
        if digest != pictures.digest:
            raise ValueError(f"{self._folder} is the bank of other pictures, or of another recipe or seed")
        done = self._done("pictures")
        batches = batches_from(pictures.batch, done // batch, loaders)
        progress = Progress("bank_filled", self._crops, done=done, part="pictures")
        for start in range(done, self._crops, batch):
            crops = next(batches).pictures
            rows = self._open("pictures", (self._crops, *crops.shape[1:]), np.uint8)
            rows[start : start + batch] = crops[: self._crops - start]
            self._write_state("pictures", min(start + batch, self._crops), drawn=pictures.digest)
            progress.advance(batch)

    def _fill_features(self, batch: int, compute: Compute, name: str) -> None:
        pictures = np.load(self._folder / "pictures.npy", mmap_mode="r")
        done = self._done(name)
        progress = Progress("bank_filled", self._crops, done=done, part=name)
        for start in range(done, self._crops, batch):
            crops = torch.from_numpy(np.array(pictures[start : start + batch]))
            features = compute(crops).cpu().numpy()
            rows = self._open(name, (self._crops, *features.shape[1:]), np.float16)
            rows[start : start + batch] = features
            self._write_state(name, min(start + batch, self._crops))
            progress.advance(batch)

    def _open(self, name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[np.generic]:
        path = self._folder / f"{name}.npy"
        if not path.exists():
            return open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        rows: NDArray[np.generic] = np.load(path, mmap_mode="r+")
        if rows.shape != shape:
            raise ValueError(f"{path} holds {rows.shape}, not {shape}: another recipe's bank")
        return rows

    def _done(self, name: str) -> int:
        return int(self._read_state(name).get("crops", 0))

    def _read_state(self, name: str) -> dict[str, Any]:
        path = self._folder / f"{name}.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def _write_state(self, name: str, crops: int, **more: str) -> None:
        # Written after the rows: after a crash the last batch is computed again.
        (self._folder / f"{name}.json").write_text(json.dumps({"crops": crops, **more}))


def _rows_of(values: NDArray[Any], rows: NDArray[np.int64], mirrored_axis: int | None) -> NDArray[Any]:
    picked = values[rows]
    return np.ascontiguousarray(picked if mirrored_axis is None else np.flip(picked, mirrored_axis))
