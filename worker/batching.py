"""MicroBatcher: many waiting tasks, one model."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class BatcherClosed(RuntimeError):  # noqa: N818 - a state
    """The batcher takes no more items, or ended before it came to this one."""


@dataclass(frozen=True)
class Batched(Generic[Result]):
    """An item's result, the size of the batch that it was computed in, and its wait for it in ms."""

    result: Result
    batch_size: int
    wait_ms: float


@dataclass(frozen=True)
class _Waiting(Generic[Item, Result]):
    item: Item
    future: "Future[Batched[Result]]"
    since: float


class MicroBatcher(Generic[Item, Result]):
    """Gathers items from many threads and runs them together on one thread of its own.

    `run` takes a list of items and returns as many results; it is never called from two threads at once.
    A batch holds at most `max_batch` items and waits at most `wait_seconds` for them. When `run` raises,
    the batch is halved until the item at fault is alone: only its future carries the error.
    """

    def __init__(
        self, run: Callable[[list[Item]], list[Result]], *, max_batch: int, wait_seconds: float
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._wait_seconds = wait_seconds
        # Four batches of reserve: beyond that, producers wait in submit.
        self._queue: queue.Queue[_Waiting[Item, Result] | None] = queue.Queue(maxsize=4 * max_batch)
        self._closing = threading.Event()
        self._at_it_since: float | None = None
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def stalled_seconds(self) -> float:
        """Seconds since the model thread last made progress while it had work; 0.0 when idle."""
        since = self._at_it_since
        return 0.0 if since is None else time.monotonic() - since

    def submit(self, item: Item, *, timeout_seconds: float | None = None) -> "Future[Batched[Result]]":
        """Queue an item and return the future of its result.

        Waits up to `timeout_seconds` for room in the queue. Raises `BatcherClosed` after `close`, and
        TimeoutError when no room came.
        """
        if self._closing.is_set():
            raise BatcherClosed("the batcher is closed")
        future: Future[Batched[Result]] = Future()
        try:
            self._queue.put(_Waiting(item, future, time.monotonic()), timeout=timeout_seconds)
        except queue.Full:
            raise TimeoutError(f"no room in the batcher's queue within {timeout_seconds} seconds") from None
        return future

    def close(self) -> None:
        """Finish what waits, then end the thread."""
        self._closing.set()
        self._queue.put(None)
        self._thread.join()
        while not self._queue.empty():
            late = self._queue.get_nowait()
            if late and late.future.set_running_or_notify_cancel():
                late.future.set_exception(BatcherClosed("the batcher was closed"))

    def _work(self) -> None:
        ending = False
        while not ending:
            batch, ending = self._gather()
            batch = [waiting for waiting in batch if waiting.future.set_running_or_notify_cancel()]
            if batch:
                self._settle(batch)
                self._at_it_since = None

    def _gather(self) -> tuple[list[_Waiting[Item, Result]], bool]:
        """Return the next batch, and whether it is the last."""
        first = self._queue.get()
        if first is None:
            return [], True
        batch = [first]
        deadline = time.monotonic() + self._wait_seconds
        while len(batch) < self._max_batch:
            try:
                waiting = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if waiting is None:
                return batch, True
            batch.append(waiting)
        return batch, False

    def _settle(self, batch: list[_Waiting[Item, Result]]) -> None:
        began = self._at_it_since = time.monotonic()
        try:
            results = self._run([waiting.item for waiting in batch])
            pairs = list(zip(batch, results, strict=True))
        except Exception as error:  # noqa: BLE001 - whatever the model raises belongs to its item
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            middle = len(batch) // 2
            self._settle(batch[:middle])
            self._settle(batch[middle:])
            return
        for waiting, result in pairs:
            waiting.future.set_result(Batched(result, len(batch), (began - waiting.since) * 1000))
