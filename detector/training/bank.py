"""Crops and their features kept on disk, so that each is computed once and seen many times."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor

from detector.training.batches import BalancedPictures
from detector.training.prefetch import drawn

log = structlog.get_logger()

Compute = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class KeptBatch:
    """`pictures` (B, S, S, 3) uint8, `features` (B, C, S, S) float16 if kept, `labels` (B,) float32."""

    pictures: NDArray[np.uint8]
    features: NDArray[np.float16] | None
    labels: NDArray[np.float32]


class FeatureBank:
    """A folder with `crops` pictures and, where a U-Net made them, their features in float16.

    Pictures are (N, S, S, 3) uint8 and labels alternate, 1 for generated; features are (N, C, S, S).
    A classifier on the pictures themselves shares the pictures with one on the features.
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
        """Draw the crops, and compute features with `compute` into `name`.npy; go on where a run stopped.

        `loaders` processes draw.
        Raises ValueError when the folder holds crops of other pictures or of another recipe.
        """
        self._fill_pictures(pictures, batch, loaders)
        if compute:
            self._fill_features(batch, compute, name)

    def batches(self, name: str | None, batch: int, *, first: int, seed: int) -> Iterator[KeptBatch]:
        """Yield batches of `batch` crops, with the features of `name` if given, from number `first` on.

        The order is drawn anew for each pass; what was drawn as a pair stays together. Half of the batches
        are mirrored.
        """
        pictures = np.load(self._folder / "pictures.npy", mmap_mode="r")
        features = np.load(self._folder / f"{name}.npy", mmap_mode="r") if name else None
        pairs, per_batch = self._crops // 2, batch // 2
        per_pass = pairs // per_batch
        while True:
            rng = np.random.default_rng([seed, first // per_pass])
            order = rng.permutation(pairs)[first % per_pass * per_batch :][:per_batch]
            rows = np.sort(np.concatenate([order * 2, order * 2 + 1]))
            mirrored = np.random.default_rng([seed, first, 1]).random() < 0.5  # noqa: PLR2004 - a coin
            yield KeptBatch(
                _chosen(pictures, rows, -2 if mirrored else None),
                None if features is None else _chosen(features, rows, -1 if mirrored else None),
                (rows % 2 == 0).astype(np.float32),
            )
            first += 1

    def _fill_pictures(self, pictures: BalancedPictures, batch: int, loaders: int) -> None:
        known = self._noted("pictures").get("drawn", pictures.digest)
        if known != pictures.digest:
            raise ValueError(f"{self._folder} is the bank of other pictures, or of another recipe or seed")
        batches = drawn(pictures.batch, self._done("pictures") // batch, loaders)
        for start in range(self._done("pictures"), self._crops, batch):
            crops = next(batches).pictures
            rows = self._rows("pictures", (self._crops, *crops.shape[1:]), np.uint8)
            rows[start : start + batch] = crops[: self._crops - start]
            self._note("pictures", min(start + batch, self._crops), drawn=pictures.digest)

    def _fill_features(self, batch: int, compute: Compute, name: str) -> None:
        pictures = np.load(self._folder / "pictures.npy", mmap_mode="r")
        for start in range(self._done(name), self._crops, batch):
            crops = torch.from_numpy(np.array(pictures[start : start + batch]))
            features = compute(crops).cpu().numpy()
            rows = self._rows(name, (self._crops, *features.shape[1:]), np.float16)
            rows[start : start + batch] = features
            self._note(name, min(start + batch, self._crops))

    def _rows(self, name: str, shape: tuple[int, ...], kind: type[np.generic]) -> NDArray[np.generic]:
        path = self._folder / f"{name}.npy"
        if not path.exists():
            return open_memmap(path, mode="w+", dtype=kind, shape=shape)
        rows: NDArray[np.generic] = np.load(path, mmap_mode="r+")
        if rows.shape != shape:
            raise ValueError(f"{path} holds {rows.shape}, not {shape}: another recipe's bank")
        return rows

    def _done(self, name: str) -> int:
        return int(self._noted(name).get("crops", 0))

    def _noted(self, name: str) -> dict[str, Any]:
        path = self._folder / f"{name}.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def _note(self, name: str, crops: int, **more: str) -> None:
        # After a crash the last batch is at worst computed again.
        (self._folder / f"{name}.json").write_text(json.dumps({"crops": crops, **more}))
        if crops == self._crops or crops % 1024 == 0:
            log.info("bank_filled", part=name, crops=crops, of=self._crops)


def _chosen(values: NDArray[Any], rows: NDArray[np.int64], mirrored_axis: int | None) -> NDArray[Any]:
    chosen = values[rows]
    return np.ascontiguousarray(chosen if mirrored_axis is None else np.flip(chosen, mirrored_axis))
