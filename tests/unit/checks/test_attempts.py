"""SharedLock, which isolates a check in its process."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from worker.checks.attempts import LockTimeoutError, SharedLock


def test_eight_threads_share_the_lock() -> None:
    """Each waits, holding the lock, for the other seven."""
    lock, all_in = SharedLock(), threading.Barrier(8)

    def hold(_number: int) -> int:
        with lock.shared(5):
            return all_in.wait(timeout=5)

    with ThreadPoolExecutor(8) as threads:
        assert sorted(threads.map(hold, range(8))) == list(range(8))


def test_an_exclusive_holder_is_the_only_one() -> None:
    """Among 400 holders, a fifth of them exclusive."""
    lock, holders, seen = SharedLock(), set[int](), list[int]()

    def hold(number: int) -> None:
        exclusive = number % 5 == 0
        with lock.exclusive(30) if exclusive else lock.shared(30):
            holders.add(number)
            if exclusive:
                seen.append(len(holders))
            holders.discard(number)

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(hold, range(400)))
    assert seen == [1] * 80


def test_a_thread_that_waits_for_the_exclusive_lock_goes_before_newcomers(
    wait_until: Callable[..., None],
) -> None:
    """A stream of shared holders cannot keep it waiting for ever."""
    lock, order = SharedLock(), list[str]()

    def exclusive() -> None:
        with lock.exclusive(10):
            order.append("exclusive")

    def newcomer() -> None:
        with lock.shared(10):
            order.append("newcomer")

    with lock.shared(1):
        first = threading.Thread(target=exclusive)
        first.start()
        wait_until(lambda: lock.waiting_exclusive == 1, "the first thread waits")
        second = threading.Thread(target=newcomer)
        second.start()
        second.join(0.2)
        assert order == []
    first.join(10)
    second.join(10)
    assert order == ["exclusive", "newcomer"]


def test_a_timeout_raises_an_error_and_leaves_the_lock_free() -> None:
    """Shared and exclusive alike."""
    lock = SharedLock()
    with lock.shared(1), pytest.raises(LockTimeoutError), lock.exclusive(0.05):
        pass
    with lock.exclusive(1), pytest.raises(LockTimeoutError), lock.shared(0.05):
        pass
    with lock.exclusive(1):
        assert lock.waiting_exclusive == 0
