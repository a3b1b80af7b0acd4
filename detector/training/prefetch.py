"""Make batches ahead of the step that needs them: on a thread, or in processes of their own."""

import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from torch.utils.data import DataLoader, Dataset

Batch = TypeVar("Batch")

_AHEAD = 4


def drawn(draw: Callable[[int], Batch], first: int, loaders: int = 1) -> Iterator[Batch]:
    """Yield `draw(first)`, `draw(first + 1)` and so on for ever, made ahead by `loaders` processes.

    With 1 a thread of this process makes them: codecs release the interpreter lock while the networks
    compute, and two cores have nothing to spare. The batches are the same, in the same order, whatever
    the number. An error in `draw` is raised here.
    """
    if loaders == 1:
        yield from prefetched(draw(index) for index in itertools.count(first))
        return
    yield from DataLoader(
        _ByNumber(draw),
        sampler=itertools.count(first),
        batch_size=None,
        num_workers=loaders,
        collate_fn=_as_it_is,
        prefetch_factor=_AHEAD,
    )


def prefetched(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yield the same batches in the same order, at most four of them made ahead; errors are raised here."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=_AHEAD)
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


class _ByNumber(Dataset[Batch], Generic[Batch]):
    """Batches by their number, drawn where they are asked for."""

    def __init__(self, draw: Callable[[int], Batch]) -> None:
        self._draw = draw

    def __getitem__(self, index: int) -> Batch:
        return self._draw(index)


def _as_it_is(batch: Batch) -> Batch:
    return batch
