"""The lock that many share or one has alone."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from worker.checks.attempts import LockTimeoutError, SharedLock


def test_many_share_it() -> None:
    """Eight threads hold it at once: each waits inside for the other seven."""
    lock, all_in = SharedLock(), threading.Barrier(8)

    def hold(_number: int) -> None:
        with lock.shared(5):
            all_in.wait(timeout=5)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(hold, range(8)))


def test_whoever_is_alone_has_nobody_beside() -> None:
    """Among four hundred holders of both kinds, one that is alone never sees another."""
    lock, inside, seen = SharedLock(), set[int](), list[int]()

    def hold(number: int) -> None:
        alone = number % 5 == 0
        with lock.exclusive(30) if alone else lock.shared(30):
            inside.add(number)
            if alone:
                seen.append(len(inside))
            inside.discard(number)

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(hold, range(400)))
    assert seen == [1] * 80


def test_whoever_waits_to_be_alone_goes_before_newcomers(wait_until: Callable[..., None]) -> None:
    """A stream of others cannot keep it waiting for ever."""
    lock, order = SharedLock(), list[str]()

    def alone() -> None:
        with lock.exclusive(10):
            order.append("alone")

    def newcomer() -> None:
        with lock.shared(10):
            order.append("newcomer")

    with lock.shared(1):
        first = threading.Thread(target=alone)
        first.start()
        wait_until(lambda: lock.waiting_exclusive == 1, "the first thread waits")
        second = threading.Thread(target=newcomer)
        second.start()
        second.join(0.2)
        assert order == []
    first.join(10)
    second.join(10)
    assert order == ["alone", "newcomer"]


def test_nobody_waits_longer_than_it_asked_to() -> None:
    """A lock that is not to be had in time says so, and is as free afterwards as before."""
    lock = SharedLock()
    with lock.shared(1), pytest.raises(LockTimeoutError), lock.exclusive(0.05):
        pass
    with lock.exclusive(1), pytest.raises(LockTimeoutError), lock.shared(0.05):
        pass
    with lock.exclusive(1):
        pass
