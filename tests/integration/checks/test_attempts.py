"""Attempts at a check, counted on a real Valkey."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest
import redis

from worker.broker import keys
from worker.broker.connection import connect
from worker.checks.attempts import Attempts
from worker.contract.messages import InvalidMessageError
from worker.embedded.valkey import Valkey
from worker.settings import Settings

DEADLINE_SECONDS = 0.2
TTL_SECONDS = 600


@pytest.fixture
def process(valkey: Valkey, broker: redis.Redis) -> Iterator[Callable[..., Attempts]]:  # noqa: ARG001 - empties it
    """Provide a function that returns the attempts of a new worker process."""
    settings = Settings(redis_url=valkey.url)
    started: list[Attempts] = []

    def start(*, deadline_seconds: float = DEADLINE_SECONDS) -> Attempts:
        attempts = Attempts(
            connect(settings.broker, retries=1),
            deadline_seconds=deadline_seconds,
            max_attempts=3,
            ttl_seconds=TTL_SECONDS,
        )
        started.append(attempts)
        return attempts

    yield start
    for attempts in started:
        attempts.close()


def _die(process: Attempts) -> None:
    """Start an attempt at the check `c` in a process that ends at once."""
    child = os.fork()
    if not child:
        with process.start("c"):
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    time.sleep(DEADLINE_SECONDS)  # then the attempt counts as lost


def test_every_attempt_is_counted_and_ended_ones_do_not_isolate_the_check(
    process: Callable[..., Attempts],
) -> None:
    """Not even twenty that ended with an error."""
    one = process()
    for number in range(1, 21):
        with suppress(RuntimeError), one.start("c") as attempt:
            assert (attempt.number, attempt.isolated) == (number, False)
            raise RuntimeError
    assert one.total("c") == 20
    with process().start("c") as attempt:
        assert (attempt.number, attempt.isolated) == (21, False)


def test_a_check_at_which_three_processes_died_is_not_started_again(
    process: Callable[..., Attempts],
) -> None:
    """Every further attempt is refused with the reason, in every process."""
    for _ in range(3):
        _die(process())
    for _ in range(2):
        with pytest.raises(InvalidMessageError, match="3 worker processes") as refused, process().start("c"):
            pass
        assert refused.value.reason == "too_many_attempts"
    with process().start("another") as attempt:
        assert attempt.number == 1


def test_a_check_at_which_a_process_died_runs_isolated(process: Callable[..., Attempts]) -> None:
    """It waits until the other checks in its process have ended."""
    _die(process())
    second, events = process(), list[str]()
    other_started, other_may_end = threading.Event(), threading.Event()

    def other_check() -> None:
        with second.start("other"):
            other_started.set()
            other_may_end.wait(10)
            events.append("other ended")

    thread = threading.Thread(target=other_check)
    thread.start()
    assert other_started.wait(10)
    threading.Timer(DEADLINE_SECONDS / 4, other_may_end.set).start()
    with second.start("c") as attempt:
        events.append("started")
        assert (attempt.number, attempt.isolated) == (2, True)
    thread.join(10)
    assert events == ["other ended", "started"]


def test_duplicates_of_a_check_do_not_count_against_it(process: Callable[..., Attempts]) -> None:
    """After a lost connection living processes may attempt the same check several times."""
    first, second = process(), process()
    for _ in range(10):
        with first.start("c") as mine, second.start("c") as other:
            assert (mine.isolated, other.isolated) == (False, True)


def test_an_attempt_within_its_deadline_is_not_lost(process: Callable[..., Attempts]) -> None:
    """Not even when more processes than may die attempt the same check at once."""
    with ExitStack() as running:
        numbers = [running.enter_context(process(deadline_seconds=60).start("c")).number for _ in range(5)]
    assert numbers == [1, 2, 3, 4, 5]


def test_two_attempts_in_one_process_run_side_by_side(process: Callable[..., Attempts]) -> None:
    """The process has not died, so the check is not isolated."""
    one = process(deadline_seconds=5)
    with one.start("c") as first, one.start("c") as second:
        assert [(attempt.number, attempt.isolated) for attempt in (first, second)] == [(1, False), (2, False)]


def test_the_attempts_at_a_check_expire(process: Callable[..., Attempts], broker: redis.Redis) -> None:
    """After the set time."""
    with process().start("c"):
        assert 0 < broker.ttl(keys.attempts("c")) <= TTL_SECONDS  # type: ignore[operator]


def test_an_end_that_could_not_be_reported_is_reported_before_the_next_attempt(
    process: Callable[..., Attempts], valkey: Valkey
) -> None:
    """Redis is away when the attempt ends."""
    one = process()
    with one.start("c"):
        valkey.kill()
    valkey.start()
    with one.start("next"), process().start("c") as attempt:
        assert not attempt.isolated
