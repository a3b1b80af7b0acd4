"""MicroBatcher: many waiting tasks, one model."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from worker.contract.messages import UnavailableError
from worker.telemetry.logs import get_logger

log = get_logger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

# How long batches stay smaller after memory ran out; then their limit doubles, as often.
SMALLER_SECONDS = 60.0


class BatcherClosedError(RuntimeError):
    """The batcher is closed, or ended before it ran this item."""


class OutOfMemoryError(RuntimeError):
    """There was no memory for a batch of one."""


class ModelFailedError(UnavailableError):
    """The networks raised, or gave no result in time."""


@dataclass(frozen=True)
class Batched(Generic[Result]):
    """The result of an item that ran in a batch."""

    result: Result
    #: Items in the batch.
    batch_size: int
    #: Milliseconds that the item waited for its batch.
    wait_ms: float


@dataclass(frozen=True)
class _Waiting(Generic[Item, Result]):
    item: Item
    future: "Future[Batched[Result]]"
    since: float


class MicroBatcher(Generic[Item, Result]):
    """Gathers items from many threads and runs them in batches on one thread of its own.

    `run` takes a list of items and returns as many results; it is never called from two threads at once.
    A batch holds at most `max_batch` items. It waits at most `wait_seconds` for them, and only while some are
    expected (`expecting`). When `run` raises, the batch is halved until the failing item is in a batch of
    one: only its future carries the error.

    `out_of_memory` returns whether an error of `run` means that memory ran out, and frees what it can. The
    batch then runs in halves, and for `smaller_seconds` no batch is larger than what fitted.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], list[Result]],
        *,
        max_batch: int,
        wait_seconds: float,
        out_of_memory: Callable[[Exception], bool] = lambda _: False,
        smaller_seconds: float = SMALLER_SECONDS,
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._wait_seconds = wait_seconds
        self._out_of_memory = out_of_memory
        self._smaller_seconds = smaller_seconds
        self._limit, self._limited_until = max_batch, 0.0
        # Four batches may wait: beyond that, `submit` waits.
        self._capacity = 4 * max_batch
        self._waiting: deque[_Waiting[Item, Result]] = deque()
        lock = threading.Lock()
        # The model thread waits for items, and who submits for room.
        self._arrived, self._room = threading.Condition(lock), threading.Condition(lock)
        self._expected = 0
        self._closed = False
        self._running_since: float | None = None
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def running_since(self) -> float | None:
        """When the call of `run` in progress began, by the monotonic clock; None when there is none."""
        return self._running_since

    @property
    def stalled_seconds(self) -> float:
        """Seconds since the call of `run` that is in progress began; 0.0 when there is none."""
        since = self._running_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def batch_limit(self) -> int:
        """The most items in a batch at present: `max_batch`, or fewer after memory ran out."""
        return self._limit

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """Let batches wait for the item that the block submits."""
        with self._arrived:
            self._expected += 1
        try:
            yield
        finally:
            with self._arrived:
                self._expected -= 1
                if self._waiting and not self._expected:
                    self._arrived.notify()

    def submit(self, item: Item, *, timeout_seconds: float | None = None) -> "Future[Batched[Result]]":
        """Queue an item and return the future of its result.

        Waits up to `timeout_seconds` while the queue is full. Raises `BatcherClosedError` after `close`, and
        TimeoutError.
        """
        future: Future[Batched[Result]] = Future()
        waiting = _Waiting(item, future, time.monotonic())
        with self._room:
            if not self._room.wait_for(
                lambda: self._closed or len(self._waiting) < self._capacity, timeout_seconds
            ):
                raise TimeoutError(f"the batcher's queue was full for {timeout_seconds} seconds")
            if self._closed:
                raise BatcherClosedError("the batcher is closed")
            self._waiting.append(waiting)
            # Any other item changes nothing for the model thread, which has a batch to wait for.
            if len(self._waiting) == 1 or len(self._waiting) >= self._limit:
                self._arrived.notify()
        return future

    def close(self) -> None:
        """Run what waits, then end the thread."""
        with self._arrived:
            self._closed = True
            self._arrived.notify_all()
            self._room.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._gather():
            running = [waiting for waiting in batch if waiting.future.set_running_or_notify_cancel()]
            if running:
                self._run_batch(running)

    def _gather(self) -> list[_Waiting[Item, Result]]:
        """Return the next batch; an empty one once the batcher is closed and its queue is empty."""
        with self._arrived:
            self._running_since = None
            self._arrived.wait_for(lambda: self._waiting or self._closed)
            if self._limit < self._max_batch and time.monotonic() >= self._limited_until:
                self._set_limit(min(2 * self._limit, self._max_batch), "batch_enlarged")
            self._arrived.wait_for(
                lambda: self._closed or not self._expected or len(self._waiting) >= self._limit,
                self._wait_seconds,
            )
            count = min(self._limit, len(self._waiting))
            batch = [self._waiting.popleft() for _ in range(count)]
            self._room.notify_all()
            return batch

    def _run_batch(self, batch: list[_Waiting[Item, Result]]) -> None:
        if len(batch) > self._limit:
            self._run_halves(batch)
            return
        began = self._running_since = time.monotonic()
        try:
            results = self._run([waiting.item for waiting in batch])
            pairs = list(zip(batch, results, strict=True))
        except Exception as error:  # noqa: BLE001 - the error belongs to the item at fault
            if self._out_of_memory(error):
                self._set_limit(max(1, len(batch) // 2), "batch_reduced")
                error = OutOfMemoryError(f"no memory for a batch of {len(batch)}: {error}")
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
        else:
            for waiting, result in pairs:
                waiting.future.set_result(Batched(result, len(batch), (began - waiting.since) * 1000))
            return
        # Outside of the handler, because the error keeps the failed batch in memory.
        self._run_halves(batch)

    def _run_halves(self, batch: list[_Waiting[Item, Result]]) -> None:
        middle = len(batch) // 2
        self._run_batch(batch[:middle])
        self._run_batch(batch[middle:])

    def _set_limit(self, limit: int, event: str) -> None:
        self._limit, self._limited_until = limit, time.monotonic() + self._smaller_seconds
        log.warning(event, batch_limit=limit, max_batch=self._max_batch)
