"""Beginnings without an end, counted on a real Valkey."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest

from worker.broker import keys
from worker.broker.connection import connect
from worker.checks.attempts import Attempts
from worker.contract.messages import InvalidMessageError
from worker.embedded.valkey import Valkey
from worker.settings import Settings

DEADLINE = 0.2


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Provide a server of this module's own, which may be killed."""
    server = Valkey(tmp_path_factory.mktemp("attempts") / "valkey")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def process(valkey: Valkey) -> Iterator[Callable[..., Attempts]]:
    """Provide a function that gives what a new worker process has, each time."""
    settings = Settings(redis_url=valkey.url, check_deadline_seconds=DEADLINE, max_attempts=3)
    with connect(settings.broker) as client:
        client.flushdb()
    started: list[Attempts] = []

    def start(**changes: float) -> Attempts:
        limits = {
            "deadline_seconds": settings.check_deadline_seconds,
            "max_attempts": settings.max_attempts,
            "ttl_seconds": settings.publish_once_ttl_seconds,
        }
        started.append(Attempts(connect(settings.broker, retries=1), **{**limits, **changes}))
        return started[-1]

    yield start
    for attempts in started:
        attempts.close()


def _die(process: Attempts) -> None:
    """Begin the check in a process that ends there and then."""
    child = os.fork()
    if not child:
        with process.start("c"):
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    time.sleep(DEADLINE)  # after it, nobody can be at the check any more


def test_every_beginning_is_counted_and_those_that_end_never_add_up(
    process: Callable[..., Attempts],
) -> None:
    """Twenty deliveries that end, also by an error, leave the check as good as new."""
    one = process()
    for number in range(1, 21):
        with suppress(RuntimeError), one.start("c") as attempt:
            assert (attempt.number, attempt.isolated) == (number, False)
            raise RuntimeError
    assert one.total("c") == 20
    with process().start("c") as attempt:
        assert (attempt.number, attempt.isolated) == (21, False)


def test_a_check_at_which_three_processes_died_is_not_begun_again(
    process: Callable[..., Attempts],
) -> None:
    """Three begin it and never end; every later one is refused, in every process, with the reason."""
    for _ in range(3):
        _die(process())
    for _ in range(2):
        with pytest.raises(InvalidMessageError, match="3 worker processes") as refused, process().start("c"):
            pass
        assert refused.value.reason == "too_many_attempts"
    with process().start("another") as attempt:
        assert attempt.number == 1


def test_a_check_at_which_a_process_died_runs_alone(process: Callable[..., Attempts]) -> None:
    """It waits until the others in its process have ended, and they wait for it."""
    _die(process())
    second, events = process(), list[str]()
    bystander_began, bystander_may_end = threading.Event(), threading.Event()

    def bystander() -> None:
        with second.start("bystander"):
            bystander_began.set()
            bystander_may_end.wait(10)
            events.append("bystander ended")

    thread = threading.Thread(target=bystander)
    thread.start()
    assert bystander_began.wait(10)
    threading.Timer(DEADLINE / 4, bystander_may_end.set).start()
    with second.start("c") as attempt:
        events.append("began")
        assert (attempt.number, attempt.isolated) == (2, True)
    thread.join(10)
    assert events == ["bystander ended", "began"]


def test_duplicates_of_a_check_do_not_count_against_it(process: Callable[..., Attempts]) -> None:
    """Messages that come again after lost connections are begun many times by living processes."""
    first, second = process(), process()
    for _ in range(10):
        with first.start("c") as mine, second.start("c") as other:
            assert (mine.isolated, other.isolated) == (False, True)


def test_a_check_that_many_processes_are_at_is_not_taken_for_one_that_ends_them(
    process: Callable[..., Attempts],
) -> None:
    """Until its deadline a beginning without an end is a check at work, however many there are of it."""
    with ExitStack() as at_work:
        numbers = [at_work.enter_context(process(deadline_seconds=60).start("c")).number for _ in range(5)]
    assert numbers == [1, 2, 3, 4, 5]


def test_a_check_that_one_process_has_twice_runs_beside_itself(process: Callable[..., Attempts]) -> None:
    """The process has not ended: nobody else in it waits for this check."""
    one = process(deadline_seconds=5)
    with one.start("c") as first, one.start("c") as second:
        assert [(attempt.number, attempt.isolated) for attempt in (first, second)] == [(1, False), (2, False)]


def test_the_beginnings_of_a_check_are_forgotten_in_time(
    process: Callable[..., Attempts], valkey: Valkey
) -> None:
    """As its verdict is, after the same time."""
    with process().start("c"), connect(Settings(redis_url=valkey.url).broker) as client:
        assert 0 < client.ttl(keys.attempts("c")) <= Settings().publish_once_ttl_seconds  # type: ignore[operator]


def test_an_end_that_could_not_be_told_is_told_later(
    process: Callable[..., Attempts], valkey: Valkey
) -> None:
    """Redis was away when the check ended: the process says so before its next check."""
    one = process()
    with one.start("c"):
        valkey.kill()
    valkey.start()
    with one.start("next"), process().start("c") as attempt:
        assert not attempt.isolated
