"""Checks that fail are retried, or dead-lettered."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

import pytest
import redis

from tests.broken_broker import commands_denied
from tests.conftest import PATIENCE, MakePicture, RunningWorker, StartWorker, StoreObject
from tests.scraping import Served
from tests.workers.failing_worker import NO_MEMORY, PROGRAM_ERROR, RAISES, SLOW_ONCE
from worker.broker.transport import REFUSED_SECONDS
from worker.client import Client, NoVerdictError
from worker.embedded.startup import free_ports
from worker.settings import Settings

MAX_RETRIES = 4


@pytest.fixture(scope="module")
def served() -> Served:
    """Provide the endpoints of this module's worker, on a free port."""
    return Served(free_ports(1)[0])


@pytest.fixture(scope="module")
def worker(worker_process: StartWorker, served: Served) -> RunningWorker:
    """Provide a worker whose model fails by a picture's width; a retry waits for a second at most."""
    variables = {
        "DNF_HTTP_PORT": str(served.port),
        "DNF_MAX_RETRIES": str(MAX_RETRIES),
        "DNF_VISIBILITY_TIMEOUT_SECONDS": str(round(5 * PATIENCE)),
        "DNF_CHECK_DEADLINE_SECONDS": str(2 * PATIENCE),
        "SLOW_SECONDS": str(3.5 * PATIENCE),
        "DNF_MODEL_STALL_SECONDS": "60",
        "DNF_THREADS": "8",
        "DNF_BATCH_SIZE": "4",
    }
    return worker_process(variables, module="tests.workers.failing_worker")


@pytest.fixture(scope="module")
def broker(settings: Settings) -> Iterator[redis.Redis]:
    """Provide a client of this module's database."""
    with redis.Redis.from_url(settings.redis_url.get_secret_value()) as broker:
        yield broker


@pytest.fixture
def submit(client: Client, store_object: StoreObject, make_picture: MakePicture) -> Callable[[int], str]:
    """Provide a function that submits a picture of a width and returns the check's id."""

    def submit(width: int) -> str:
        key = f"retries/{width}.jpg"
        store_object(key, make_picture(1, (width, 90)))
        return client.submit(client.settings.upload_bucket, key)

    return submit


@contextmanager
def _replaced(broker: redis.Redis, stream: str) -> Iterator[None]:
    """Put a string in the place of a stream, so that the server refuses to append to it."""
    kept = broker.exists(stream) and broker.rename(stream, "kept")
    broker.set(stream, "not a stream")
    yield
    broker.delete(stream)
    if kept:
        broker.rename("kept", stream)


def _retries(served: Served) -> Counter[str]:
    """Return the number of retries so far by reason."""
    samples = served.samples().items()
    return Counter({labels[0][1]: int(n) for (name, labels), n in samples if name == "dnf_retries_total"})


def test_the_number_of_retries_depends_on_the_fault(
    worker: RunningWorker, client: Client, submit: Callable[[int], str], served: Served
) -> None:
    """Two when the networks or the program raise, the set number when memory is short, then a dead letter.

    A malformed check is not retried. A good one beside them has its verdict; retries are counted by reason.
    """
    before = _retries(served)
    raises, no_memory, fault, good = (submit(width) for width in (RAISES, NO_MEMORY, PROGRAM_ERROR, 96))
    none = client.submit(client.settings.upload_bucket, "retries/96.jpg", policy="stricter")
    client.wait_for(good, timeout_seconds=60 * PATIENCE)
    with pytest.raises(NoVerdictError) as failed:
        client.wait_for(raises, no_memory, fault, none, timeout_seconds=60 * PATIENCE)
    dead_letters = failed.value.dead_letters.items()
    assert {name: (dead_letter.reason, dead_letter.attempts) for name, dead_letter in dead_letters} == {
        raises: ("model_failed", 3),
        no_memory: ("model_failed", 1 + MAX_RETRIES),
        fault: ("internal_error", 3),
        none: ("unknown_policy", 0),
    }
    assert _retries(served) - before == {"model_failed": 2 + MAX_RETRIES, "internal_error": 2}
    lines = worker.wait_for_event("check_failed", check_id=fault, count=3)
    assert [line["exception"][0]["exc_type"] for line in lines] == ["ZeroDivisionError"] * 3


def test_a_check_that_exceeds_its_deadline_is_retried_and_leaves_the_queue_of_the_batcher(
    worker: RunningWorker,
    client: Client,
    submit: Callable[[int], str],
    served: Served,
    wait_until: Callable[..., None],
) -> None:
    """One runs in the model at its deadline, and one waits behind it; the second costs no forward pass."""
    before = served.figure("dnf_batch_size_sum") or 0
    slow = submit(SLOW_ONCE)
    wait_until(lambda: served.figure("dnf_batcher_stalled_seconds"), "the model runs")
    waiting = submit(96)
    client.wait_for(slow, waiting, timeout_seconds=60 * PATIENCE)
    for check_id in (slow, waiting):
        (line,) = worker.wait_for_event("check_retried", check_id=check_id)
        assert "ModelFailedError: TimeoutError" in line["error"]
    assert (served.figure("dnf_batch_size_sum") or 0) - before == 3


def test_a_verdict_that_the_broker_refuses_is_published_later(
    worker: RunningWorker, client: Client, submit: Callable[[int], str], broker: redis.Redis, served: Served
) -> None:
    """After any number of retries: such a check is never dead-lettered."""
    before, since = _retries(served), client.position()
    with _replaced(broker, "verdicts"):
        check_id = submit(96)
        worker.wait_for_event("check_retried", check_id=check_id, count=MAX_RETRIES + 1)
    client.wait_for(check_id, timeout_seconds=60 * PATIENCE, since=since)
    assert (_retries(served) - before).keys() == {"broker"}


def test_a_dead_letter_that_the_broker_refuses_is_written_later(
    worker: RunningWorker, client: Client, broker: redis.Redis
) -> None:
    """The check is retried until then."""
    with _replaced(broker, "dead-letters"):
        check_id = client.submit(client.settings.upload_bucket, "retries/96.jpg", policy="stricter")
        worker.wait_for_event("check_retried", check_id=check_id)
    (dead_letter,) = worker.wait_for_event("check_dead_lettered", check_id=check_id)
    assert dead_letter["reason"] == "unknown_policy"


def test_a_check_whose_retry_the_broker_refuses_is_requeued(
    worker: RunningWorker, client: Client, submit: Callable[[int], str], broker: redis.Redis
) -> None:
    """Celery would drop it. It is attempted again after a pause, until the broker accepts its outcome."""
    since = client.position()
    with _replaced(broker, "verdicts"):
        check_id = submit(96)
        worker.wait_for_event("check_retried", check_id=check_id)
        with commands_denied(broker, "lpush"):
            retried = len(worker.wait_for_event("check_retried", check_id=check_id))
            lines = worker.wait_for_event("check_retried", check_id=check_id, count=retried + 2)
    before, last = (datetime.fromisoformat(line["timestamp"]) for line in lines[retried : retried + 2])
    assert (last - before).total_seconds() >= REFUSED_SECONDS
    client.wait_for(check_id, timeout_seconds=60 * PATIENCE, since=since)
