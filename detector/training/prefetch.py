"""Make batches on a thread of their own: codecs release the interpreter lock while the networks compute."""

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

Batch = TypeVar("Batch")

_AHEAD = 4


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
