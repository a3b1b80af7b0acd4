"""The micro-batcher."""

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
    """A slow model that doubles numbers and fails on negative ones; it notes each batch and its thread."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()
        self.at_once = 0

    def __call__(self, items: list[int]) -> list[int]:
        self.at_once += 1
        assert self.at_once == 1, "two batches at once"
        self.threads.add(threading.get_ident())
        self.batches.append(items)
        time.sleep(self.seconds)
        self.at_once -= 1
        if any(item < 0 for item in items):
            raise ValueError("negative")
        return [2 * item for item in items]


def test_every_item_gets_its_own_result_whatever_its_batch() -> None:
    """400 items from 32 threads come back doubled; the model runs on one thread, 16 at a time at most."""
    model = _Doubler(0.002)
    batcher = MicroBatcher(model, max_batch=16, wait_seconds=0.01)
    with ThreadPoolExecutor(32) as threads:
        results = list(threads.map(lambda item: batcher.submit(item).result(30), range(400)))
    batcher.close()
    assert [batched.result for batched in results] == [2 * item for item in range(400)]
    assert len(model.threads) == 1
    assert max(len(batch) for batch in model.batches) <= 16
    assert max(batched.batch_size for batched in results) > 1


def test_a_single_item_does_not_wait_longer_than_the_batcher_may() -> None:
    """The wait is reported in milliseconds and is about the 50 that were asked for."""
    batcher = MicroBatcher(_Doubler(), max_batch=16, wait_seconds=0.05)
    batched = batcher.submit(1).result(30)
    batcher.close()
    assert batched.batch_size == 1
    assert 45 <= batched.wait_ms < 2000


def test_a_full_batch_goes_at_once() -> None:
    """With all places taken nobody waits for the time, here a minute."""
    batcher = MicroBatcher(_Doubler(), max_batch=4, wait_seconds=60)
    futures = [batcher.submit(item) for item in range(4)]
    assert [future.result(30).result for future in futures] == [0, 2, 4, 6]
    batcher.close()


def test_a_bad_item_fails_alone() -> None:
    """Of 64 items in one batch, 63 come out, and only the bad one carries the error."""
    batcher = MicroBatcher(_Doubler(), max_batch=64, wait_seconds=60)
    futures = [batcher.submit(-1 if item == 37 else item) for item in range(64)]
    with pytest.raises(ValueError, match="negative"):
        futures[37].result(30)
    del futures[37]
    assert [future.result(30).result for future in futures] == [2 * i for i in range(64) if i != 37]
    batcher.close()


def test_a_model_that_returns_too_few_results_fails_its_items_and_no_others() -> None:
    """A result never reaches the wrong item."""
    batcher = MicroBatcher(lambda items: items[1:], max_batch=2, wait_seconds=60)
    futures = [batcher.submit(item) for item in range(2)]
    for future in futures:
        with pytest.raises(ValueError, match="argument 2 is shorter"):
            future.result(30)
    batcher.close()


def test_a_cancelled_item_costs_the_model_nothing(wait_until: Callable[..., None]) -> None:
    """An item whose task gave up while it waited is left out of the batch."""
    model = _Doubler(0.2)
    batcher = MicroBatcher(model, max_batch=1, wait_seconds=0)
    first = batcher.submit(1)
    wait_until(lambda: model.batches, "the model is busy")
    second, third = batcher.submit(2), batcher.submit(3)
    assert second.cancel()
    assert third.result(30).result == 6
    assert first.result(30).result == 2
    with pytest.raises(CancelledError):
        second.result(0)
    assert model.batches == [[1], [3]]
    batcher.close()


def test_a_full_queue_is_not_waited_for_for_ever() -> None:
    """Behind a model that hangs, submit gives up after its time."""
    hanging = threading.Event()
    batcher = MicroBatcher(lambda items: [hanging.wait(30) for _ in items], max_batch=1, wait_seconds=0)
    with pytest.raises(TimeoutError):  # noqa: PT012 - one of the first few fills the queue
        for item in range(10):
            batcher.submit(item, timeout_seconds=0.05)
    hanging.set()
    batcher.close()


def test_closing_finishes_what_waits_and_takes_no_more() -> None:
    """Everything that was submitted before has its result."""
    batcher = MicroBatcher(_Doubler(0.01), max_batch=2, wait_seconds=0)
    futures = [batcher.submit(item) for item in range(7)]
    batcher.close()
    assert [future.result(0).result for future in futures] == [2 * item for item in range(7)]
    with pytest.raises(BatcherClosedError):
        batcher.submit(1)


def test_a_batch_that_memory_does_not_suffice_for_goes_on_in_halves_and_the_next_are_smaller() -> None:
    """Of a model that holds five at most all items come out, and no later batch is too large for it."""
    model, freed = _Doubler(), []

    def run(items: list[int]) -> list[int]:
        if len(items) > 5:
            raise MemoryError(f"no room for {len(items)}")
        return model(items)

    def out_of_memory(error: Exception) -> bool:
        freed.append(error)
        return isinstance(error, MemoryError)

    batcher = MicroBatcher(run, max_batch=16, wait_seconds=60, out_of_memory=out_of_memory)
    futures = [batcher.submit(item) for item in range(16)]
    assert [future.result(30).result for future in futures] == [2 * item for item in range(16)]
    assert [str(error) for error in freed] == ["no room for 16", "no room for 8"]
    assert batcher.batch_limit == 4
    futures = [batcher.submit(item) for item in range(8)]
    assert [future.result(30).batch_size for future in futures] == [4] * 8
    assert len(freed) == 2
    batcher.close()


def test_after_a_while_batches_grow_again() -> None:
    """Twice the size each time, up to what was asked for."""
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


def test_without_memory_for_one_alone_its_error_says_so() -> None:
    """The machine is at fault, and not the item."""

    def run(_: list[int]) -> list[int]:
        raise MemoryError("none at all")

    batcher = MicroBatcher(run, max_batch=4, wait_seconds=0, out_of_memory=lambda _: True)
    with pytest.raises(OutOfMemoryError, match="none at all"):
        batcher.submit(1).result(30)
    batcher.close()


def test_memory_that_runs_out_is_told_from_other_faults() -> None:
    """What PyTorch and NumPy raise when they are asked for a petabyte, and a matrix of a wrong shape."""
    import torch

    for allocate in (lambda: torch.empty(1 << 50), lambda: np.empty(1 << 50)):
        with pytest.raises((RuntimeError, MemoryError)) as raised:
            allocate()
        assert free_memory_after(raised.value)
    assert free_memory_after(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    with pytest.raises(RuntimeError) as raised:
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert not free_memory_after(raised.value)


def test_what_a_failed_pass_held_is_let_go() -> None:
    """Its error, which is still at hand, keeps nothing alive."""

    class Tensor:
        pass

    held: list[weakref.ref[Tensor]] = []

    def failing() -> None:
        tensor = Tensor()
        held.append(weakref.ref(tensor))
        raise MemoryError

    try:
        failing()
    except MemoryError as error:
        assert held[0]() is not None
        free_memory_after(error)
        assert held[0]() is None


def test_a_model_at_work_tells_how_long_it_has_made_no_progress(wait_until: Callable[..., None]) -> None:
    """Nothing when idle, more and more while a batch lasts, little again after it, nothing in the end."""
    going_on = threading.Semaphore(0)

    def run(items: list[int]) -> list[int]:
        going_on.acquire(timeout=30)
        return items

    batcher = MicroBatcher(run, max_batch=1, wait_seconds=0)
    assert batcher.stalled_seconds == 0
    futures = [batcher.submit(1), batcher.submit(2)]
    wait_until(lambda: batcher.stalled_seconds > 0.5, "it stands still")
    going_on.release()
    futures[0].result(30)
    assert batcher.stalled_seconds < 0.5
    going_on.release()
    futures[1].result(30)
    wait_until(lambda: batcher.stalled_seconds == 0, "it is idle")
    batcher.close()


def test_every_part_of_a_batch_that_is_tried_again_is_progress() -> None:
    """A batch that fails as a whole lasts long in its parts, and the model stands still in none of them."""
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
def test_a_model_thread_that_died_makes_no_progress(wait_until: Callable[..., None]) -> None:
    """What frees memory may fail itself: then nobody takes up the batch again, and the watchdog sees it."""

    def broken(error: Exception) -> bool:
        raise RuntimeError("the device is lost") from error

    batcher = MicroBatcher(_Doubler(), max_batch=1, wait_seconds=0, out_of_memory=broken)
    batcher.submit(-1)
    wait_until(lambda: batcher.stalled_seconds > 0.2, "it stands still")
    batcher.close()


def test_whatever_is_submitted_while_the_batcher_closes_is_done_or_refused() -> None:
    """Over fifty closings, amid submits from four threads, no future is left without an answer."""
    for _ in range(50):
        batcher = MicroBatcher(lambda items: items, max_batch=2, wait_seconds=0)
        futures: list[Future[Any]] = []
        began = threading.Barrier(5)

        def submit(
            batcher: MicroBatcher[int, int] = batcher,
            futures: list[Future[Any]] = futures,
            began: threading.Barrier = began,
        ) -> None:
            began.wait(30)
            with suppress(BatcherClosedError):
                futures.extend(batcher.submit(1, timeout_seconds=30) for _ in range(20))

        threads = [threading.Thread(target=submit) for _ in range(4)]
        for thread in threads:
            thread.start()
        began.wait(30)
        batcher.close()
        for thread in threads:
            thread.join(30)
        assert all(future.done() for future in futures)
