"""MicroBatcher, and the memory that a failed batch frees."""

import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from detector.acceleration.memory import free_memory_after
from worker.checks.batching import BatcherClosedError, MicroBatcher, OutOfMemoryError


class _Doubler:
    """A slow model that doubles numbers, raises on negative ones, and records batches and threads."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()
        self.running = 0

    def __call__(self, items: list[int]) -> list[int]:
        self.running += 1
        assert self.running == 1, "two batches at once"
        self.threads.add(threading.get_ident())
        self.batches.append(items)
        time.sleep(self.seconds)
        self.running -= 1
        if any(item < 0 for item in items):
            raise ValueError("negative")
        return [2 * item for item in items]


def test_every_item_gets_its_own_result() -> None:
    """For 400 items from 32 threads; the model runs on one thread, with at most 16 items at a time."""
    model = _Doubler(0.002)
    batcher = MicroBatcher(model, max_batch=16, wait_seconds=0.01)
    with ThreadPoolExecutor(32) as threads:
        results = list(threads.map(lambda item: batcher.submit(item).result(30), range(400)))
    batcher.close()
    assert [batched.result for batched in results] == [2 * item for item in range(400)]
    assert len(model.threads) == 1
    assert max(len(batch) for batch in model.batches) <= 16
    assert max(batched.batch_size for batched in results) > 1


def test_a_single_item_waits_for_an_expected_one_for_the_set_time() -> None:
    """The wait is reported in milliseconds: here about 50."""
    batcher = MicroBatcher(_Doubler(), max_batch=16, wait_seconds=0.05)
    with batcher.expecting():
        batched = batcher.submit(1).result(30)
    batcher.close()
    assert batched.batch_size == 1
    assert 45 <= batched.wait_ms < 2000


def test_a_batch_does_not_wait_when_no_item_is_expected() -> None:
    """The wait would be a minute; an item that is expected joins the batch, or is not submitted at all."""
    batcher = MicroBatcher(_Doubler(), max_batch=16, wait_seconds=60)
    assert batcher.submit(1).result(30).batch_size == 1
    with batcher.expecting():
        futures = [batcher.submit(1), batcher.submit(2)]
    assert [future.result(30).batch_size for future in futures] == [2, 2]
    with batcher.expecting():
        future = batcher.submit(3)
    assert future.result(30).result == 6
    batcher.close()


def test_a_full_batch_does_not_wait() -> None:
    """The wait would be a minute."""
    batcher = MicroBatcher(_Doubler(), max_batch=4, wait_seconds=60)
    futures = [batcher.submit(item) for item in range(4)]
    assert [future.result(30).result for future in futures] == [0, 2, 4, 6]
    batcher.close()


def test_only_the_failing_item_of_a_batch_gets_the_error() -> None:
    """The other 63 get their results."""
    batcher = MicroBatcher(_Doubler(), max_batch=64, wait_seconds=60)
    futures = [batcher.submit(-1 if item == 37 else item) for item in range(64)]
    with pytest.raises(ValueError, match="negative"):
        futures[37].result(30)
    del futures[37]
    assert [future.result(30).result for future in futures] == [2 * i for i in range(64) if i != 37]
    batcher.close()


def test_too_few_results_are_an_error_of_every_item() -> None:
    """A result never reaches the wrong item."""
    batcher = MicroBatcher(lambda items: items[1:], max_batch=2, wait_seconds=60)
    futures = [batcher.submit(item) for item in range(2)]
    for future in futures:
        with pytest.raises(ValueError, match="argument 2 is shorter"):
            future.result(30)
    batcher.close()


def test_a_cancelled_item_does_not_reach_the_model(wait_until: Callable[..., None]) -> None:
    """It is left out of its batch."""
    model = _Doubler(0.2)
    batcher = MicroBatcher(model, max_batch=1, wait_seconds=0)
    first = batcher.submit(1)
    wait_until(lambda: model.batches, "the model runs")
    second, third = batcher.submit(2), batcher.submit(3)
    assert second.cancel()
    assert third.result(30).result == 6
    assert first.result(30).result == 2
    with pytest.raises(CancelledError):
        second.result(0)
    assert model.batches == [[1], [3]]
    batcher.close()


def test_submit_times_out_when_the_queue_is_full() -> None:
    """Here behind a model that hangs."""
    released = threading.Event()
    batcher = MicroBatcher(lambda items: [released.wait(30) for _ in items], max_batch=1, wait_seconds=0)
    with pytest.raises(TimeoutError):  # noqa: PT012 - one of the first few fills the queue
        for item in range(10):
            batcher.submit(item, timeout_seconds=0.05)
    released.set()
    batcher.close()


def test_close_runs_the_queued_items_and_refuses_others() -> None:
    """Every item that was submitted before has its result."""
    batcher = MicroBatcher(_Doubler(0.01), max_batch=2, wait_seconds=0)
    futures = [batcher.submit(item) for item in range(7)]
    batcher.close()
    assert [future.result(0).result for future in futures] == [2 * item for item in range(7)]
    with pytest.raises(BatcherClosedError):
        batcher.submit(1)


def test_a_batch_that_runs_out_of_memory_is_halved_and_later_batches_are_smaller() -> None:
    """For a model with memory for five items; no later batch is too large for it."""
    model, freed = _Doubler(), []

    def run(items: list[int]) -> list[int]:
        if len(items) > 5:
            raise MemoryError(f"no memory for {len(items)}")
        return model(items)

    def out_of_memory(error: Exception) -> bool:
        freed.append(error)
        return isinstance(error, MemoryError)

    batcher = MicroBatcher(run, max_batch=16, wait_seconds=60, out_of_memory=out_of_memory)
    futures = [batcher.submit(item) for item in range(16)]
    assert [future.result(30).result for future in futures] == [2 * item for item in range(16)]
    assert [str(error) for error in freed] == ["no memory for 16", "no memory for 8"]
    assert batcher.batch_limit == 4
    futures = [batcher.submit(item) for item in range(8)]
    assert [future.result(30).batch_size for future in futures] == [4] * 8
    assert len(freed) == 2
    batcher.close()


def test_batches_grow_again_after_a_while() -> None:
    """Twice as large each time, up to the maximum."""
    full = [True]

    def run(items: list[int]) -> list[int]:
        if full and len(items) > 2:
            raise MemoryError
        return items

    batcher = MicroBatcher(
        run, max_batch=8, wait_seconds=0, out_of_memory=lambda _: True, smaller_seconds=0.0
    )
    while batcher.batch_limit == 8:
        for future in [batcher.submit(item) for item in range(8)]:
            future.result(30)
    full.clear()
    for _ in range(3):
        batcher.submit(1).result(30)
    assert batcher.batch_limit == 8
    batcher.close()


def test_a_batch_of_one_that_runs_out_of_memory_raises_out_of_memory_error() -> None:
    """It tells a fault of the machine from a fault of the item."""

    def run(_: list[int]) -> list[int]:
        raise MemoryError("none at all")

    batcher = MicroBatcher(run, max_batch=4, wait_seconds=0, out_of_memory=lambda _: True)
    with pytest.raises(OutOfMemoryError, match="none at all"):
        batcher.submit(1).result(30)
    batcher.close()


def test_out_of_memory_errors_are_recognized() -> None:
    """Those that PyTorch and NumPy raise for a petabyte, but not the error of a matrix of a wrong shape."""
    import torch

    for allocate in (lambda: torch.empty(1 << 50), lambda: np.empty(1 << 50)):
        with pytest.raises((RuntimeError, MemoryError)) as raised:
            allocate()
        assert free_memory_after(raised.value)
    assert free_memory_after(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    with pytest.raises(RuntimeError) as raised:
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert not free_memory_after(raised.value)


def test_the_objects_of_a_failed_forward_pass_are_freed() -> None:
    """Although its error, whose traceback refers to them, is still in use."""

    class Tensor:
        pass

    freed: list[weakref.ref[Tensor]] = []

    def failing() -> None:
        tensor = Tensor()
        freed.append(weakref.ref(tensor))
        raise MemoryError

    try:
        failing()
    except MemoryError as error:
        assert freed[0]() is not None
        free_memory_after(error)
        assert freed[0]() is None


def test_stalled_seconds_is_the_time_since_the_running_batch_began(wait_until: Callable[..., None]) -> None:
    """It grows during a batch, starts again with the next one, and is 0 without one."""
    released = threading.Semaphore(0)

    def run(items: list[int]) -> list[int]:
        released.acquire(timeout=30)
        return items

    batcher = MicroBatcher(run, max_batch=1, wait_seconds=0)
    assert batcher.stalled_seconds == 0
    futures = [batcher.submit(1), batcher.submit(2)]
    wait_until(lambda: batcher.stalled_seconds > 0.5, "the batch lasts")
    released.release()
    futures[0].result(30)
    assert batcher.stalled_seconds < 0.5
    released.release()
    futures[1].result(30)
    wait_until(lambda: batcher.stalled_seconds == 0, "the batcher is idle")
    batcher.close()


def test_stalled_seconds_starts_again_with_each_part_of_a_halved_batch() -> None:
    """A batch that is run again in parts takes long, but the model makes progress."""
    stalled: list[float] = []

    def run(items: list[int]) -> list[int]:
        stalled.append(batcher.stalled_seconds)
        time.sleep(0.1)
        if len(items) > 1:
            raise ValueError
        return items

    batcher = MicroBatcher(run, max_batch=4, wait_seconds=60)
    futures = [batcher.submit(item) for item in range(4)]
    assert [future.result(30).batch_size for future in futures] == [1] * 4
    batcher.close()
    assert len(stalled) == 7
    assert max(stalled) < 0.1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_stalled_seconds_grows_when_the_model_thread_has_died(wait_until: Callable[..., None]) -> None:
    """The function that frees memory may raise itself; the watchdog then sees a stall."""

    def broken(error: Exception) -> bool:
        raise RuntimeError("the device is lost") from error

    batcher = MicroBatcher(_Doubler(), max_batch=1, wait_seconds=0, out_of_memory=broken)
    batcher.submit(-1)
    wait_until(lambda: batcher.stalled_seconds > 0.2, "the stall is seen")
    batcher.close()


def test_an_item_submitted_while_the_batcher_closes_is_run_or_refused() -> None:
    """No future of four threads is left unresolved, in fifty repetitions."""
    for _ in range(50):
        batcher = MicroBatcher(lambda items: items, max_batch=2, wait_seconds=0)
        futures: list[Future[Any]] = []
        start = threading.Barrier(5)

        def submit(
            batcher: MicroBatcher[int, int] = batcher,
            futures: list[Future[Any]] = futures,
            start: threading.Barrier = start,
        ) -> None:
            start.wait(30)
            with suppress(BatcherClosedError):
                futures.extend(batcher.submit(1, timeout_seconds=30) for _ in range(20))

        threads = [threading.Thread(target=submit) for _ in range(4)]
        for thread in threads:
            thread.start()
        start.wait(30)
        batcher.close()
        for thread in threads:
            thread.join(30)
        assert all(future.done() for future in futures)
