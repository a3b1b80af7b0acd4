"""Batches of pictures, balanced over classes and families, and made ahead of the step that needs them."""

import itertools
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from detector.corpus.corpus import Sample
from detector.images.decode import decode
from detector.training.augmentation import Augmentation
from detector.training.balance import balanced_weights
from detector.training.twins import twin

Batch = TypeVar("Batch")

#: Side of the largest square that is scored or counted, in pixels.
LARGEST_SQUARE = 384
_CACHE_BYTES = 6 << 30
_PREFETCHED = 4


@dataclass(frozen=True)
class PictureBatch:
    """`pictures` (B, S, S, 3) uint8, generated and real in turn, with labels and families (B,)."""

    pictures: NDArray[np.uint8]
    #: 1 for generated.
    labels: NDArray[np.float32]
    #: Numbers of the families in `BalancedPictures.families`.
    families: NDArray[np.int64]


class BalancedPictures:
    """Half real and half generated pictures, drawn by their `balanced_weights`.

    A generated picture is drawn with the photograph that it was made from, and both get the same augmentation
    and crop, so only the generator's changes tell them apart. Batch `i` depends on the seed alone, so a
    resumed run draws the same batches. Raises ValueError when a class is missing.
    """

    def __init__(
        self, samples: list[Sample], augmentation: Augmentation, *, size: int, batch: int, seed: int
    ) -> None:
        self._pairs, self._seed = batch // 2, seed
        #: Makes the crops.
        self.maker = CropMaker(augmentation, size)
        if {sample.generated for sample in samples} != {True, False}:
            raise ValueError("training needs pictures of both classes")
        #: The names of all families.
        self.families = sorted({sample.family for sample in samples})
        self._numbers = {family: number for number, family in enumerate(self.families)}
        weights = balanced_weights(samples)
        self._classes: list[tuple[list[Sample], NDArray[np.float64]]] = []
        for generated in (True, False):
            own = [index for index, sample in enumerate(samples) if sample.generated == generated]
            self._classes.append(([samples[index] for index in own], weights[own] / weights[own].sum()))
        photographs = {sample.pair: sample for sample in samples if sample.pair and not sample.generated}
        by_path = {sample.path: sample for sample in samples if not sample.generated}
        self._sources = {
            s.path: by_path[s.path] if s.twin else photographs[s.pair]
            for s in samples
            if s.generated and (s.twin or s.pair in photographs)
        }

    def batch(self, index: int) -> PictureBatch:
        """Return batch `index` of new crops."""
        draws = self.draws(index)
        return self.labelled(np.stack([self.maker(sample, seed) for sample, seed in draws]), draws)

    def labelled(self, pictures: NDArray[np.uint8], draws: list[tuple[Sample, int]]) -> PictureBatch:
        """Return pictures (B, S, S, 3) of these `draws` with what they are of."""
        labels = np.array([sample.generated for sample, _ in draws], dtype=np.float32)
        families = np.array([self._numbers[sample.family] for sample, _ in draws])
        return PictureBatch(pictures, labels, families)

    def draws(self, index: int) -> list[tuple[Sample, int]]:
        """Return what is in batch `index`: a generated picture and a photograph in turn, each with a seed.

        Equal seeds stand for crops that are made alike.
        """
        rng = np.random.default_rng([self._seed, index])
        chosen = [
            [samples[number] for number in rng.choice(len(samples), self._pairs, p=weights)]
            for samples, weights in self._classes
        ]
        drawn: list[tuple[Sample, int]] = []
        for generated, photograph in zip(*chosen, strict=True):
            source = self._sources.get(generated.path)
            seeds = rng.integers(0, 1 << 62, 2)
            if source:
                seeds[1] = seeds[0]
            drawn += [(generated, int(seeds[0])), (source or photograph, int(seeds[1]))]
        return drawn


class CropMaker:
    """Makes augmented crops of samples, and keeps the decoded pictures in memory up to a limit."""

    def __init__(self, augmentation: Augmentation, size: int) -> None:
        self._augmentation, self._size = augmentation, size
        self._decoded = _DecodedPictures(_CACHE_BYTES)

    @property
    def recipe(self) -> str:
        """How crops are made, as text."""
        return f"{self._augmentation!r} {self._size}"

    def __call__(self, sample: Sample, seed: int, share: float | None = None) -> NDArray[np.uint8]:
        """Return the crop (S, S, 3) of a sample that belongs to a seed.

        With a `share`, 0..1, a side is that share of the shorter side of the picture or of 384 pixels.
        """
        pixels = self._decoded[sample.path]
        if sample.twin:
            # A generator of its own, so that the augmentation is that of the photograph.
            pixels = twin(sample.twin, pixels, np.random.default_rng([seed, 1]))
        size = self._size
        if share is not None:
            size = max(size, int(share * min(LARGEST_SQUARE, *pixels.shape[:2])))
        return self._augmentation(pixels, size, np.random.default_rng(seed))


class _DecodedPictures:
    """A least-recently-used cache of decoded pixels by path, bounded in bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._pictures: OrderedDict[Path, NDArray[np.uint8]] = OrderedDict()

    def __getitem__(self, path: Path) -> NDArray[np.uint8]:
        pixels = self._pictures.pop(path, None)
        if pixels is None:
            pixels = decode(path.read_bytes()).pixels
            self._bytes += pixels.nbytes
        self._pictures[path] = pixels
        while self._bytes > self._max_bytes and len(self._pictures) > 1:
            _, evicted = self._pictures.popitem(last=False)
            self._bytes -= evicted.nbytes
        return pixels


def batches_from(draw: Callable[[int], Batch], first: int, loaders: int = 1) -> Iterator[Batch]:
    """Yield `draw(first)`, `draw(first + 1)` and so on without end, made ahead by `loaders` processes.

    With one loader a thread of this process makes them: codecs release the interpreter lock, and a machine of
    two cores has none to spare. The batches and their order do not depend on `loaders`. An error in `draw` is
    raised here.
    """
    if loaders == 1:
        yield from prefetched(draw(index) for index in itertools.count(first))
        return
    yield from DataLoader(
        _Batches(draw),
        sampler=itertools.count(first),
        batch_size=None,
        num_workers=loaders,
        multiprocessing_context="forkserver",  # a fork of a process with threads may deadlock
        collate_fn=_unchanged,
        prefetch_factor=_PREFETCHED,
    )


def prefetched(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yield the same batches, up to four of them made ahead on a thread; errors are raised here."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=_PREFETCHED)
    finished = threading.Event()

    def put(item: Batch | BaseException | None) -> None:
        while not finished.is_set():
            try:
                ready.put(item, timeout=0.2)
            except queue.Full:
                continue
            return

    def make() -> None:
        try:
            for batch in batches:
                put(batch)
                if finished.is_set():
                    return
            put(None)
        except BaseException as error:  # noqa: BLE001 - raised again on the consumer's thread
            put(error)

    threading.Thread(target=make, name="batches", daemon=True).start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        finished.set()


class _Batches(Dataset[Batch], Generic[Batch]):
    """Batches by number, drawn in the process that asks for them."""

    def __init__(self, draw: Callable[[int], Batch]) -> None:
        self._draw = draw

    def __getitem__(self, index: int) -> Batch:
        return self._draw(index)


def _unchanged(batch: Batch) -> Batch:
    return batch
