"""The micro-batcher."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from worker.batching import BatcherClosed, MicroBatcher


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
    with pytest.raises(BatcherClosed):
        batcher.submit(1)
