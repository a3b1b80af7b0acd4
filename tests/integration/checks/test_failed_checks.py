"""What becomes of checks that cannot be carried out: tried again as often as is worth it, or kept."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import pytest
import redis

from tests.conftest import PATIENCE, MakePicture, RunningWorker
from tests.scraping import Served
from tests.workers.failing_worker import FAULT, NO_MEMORY, RAISES, SLOW_ONCE
from worker.broker.transport import REFUSED_SECONDS
from worker.client import Client, NoVerdictError
from worker.embedded.services import EmbeddedServices
from worker.embedded.startup import free_ports
from worker.settings import Settings

MAX_RETRIES = 4


@pytest.fixture(scope="module")
def served() -> Served:
    """Provide the endpoints of this module's worker, on a port that is free."""
    return Served(free_ports(1)[0])


@pytest.fixture(scope="module")
def environment(service_environment: dict[str, str], served: Served) -> dict[str, str]:
    """Return the DNF_ variables: retries come within a second, and a check has two."""
    return {
        **service_environment,
        "DNF_HTTP_PORT": str(served.port),
        "DNF_MAX_RETRIES": str(MAX_RETRIES),
        "DNF_VISIBILITY_TIMEOUT_SECONDS": str(round(5 * PATIENCE)),
        "DNF_CHECK_DEADLINE_SECONDS": str(2 * PATIENCE),
        "SLOW_SECONDS": str(3.5 * PATIENCE),
        "DNF_MODEL_STALL_SECONDS": "60",
        "DNF_THREADS": "8",
        "DNF_BATCH_SIZE": "4",
    }


@pytest.fixture(scope="module")
def worker(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningWorker]:
    """Provide this module's worker, whose model fails when it is told to."""
    log = tmp_path_factory.mktemp("failing") / "worker.log"
    worker = RunningWorker(environment, log, "tests.workers.failing_worker")
    worker.start()
    yield worker
    worker.stop()


@pytest.fixture(scope="module")
def client(environment: dict[str, str]) -> Iterator[Client]:
    """Provide a client of this module's worker."""
    values: dict[str, Any] = {name.removeprefix("DNF_").lower(): value for name, value in environment.items()}
    with Client(Settings(**values)) as client:
        yield client


@pytest.fixture(scope="module")
def broker(environment: dict[str, str]) -> Iterator[redis.Redis]:
    """Provide a client of this module's database."""
    with redis.Redis.from_url(environment["DNF_REDIS_URL"]) as broker:
        yield broker


@pytest.fixture
def submit(client: Client, services: EmbeddedServices, make_picture: MakePicture) -> Callable[[int], str]:
    """Provide a function that submits a picture of a width and returns the check's id."""
    s3 = services.seaweedfs.client()

    def submit(width: int) -> str:
        key = f"retries/{width}.jpg"
        s3.put_object(Bucket=services.bucket, Key=key, Body=make_picture(1, (width, 90)))
        return client.submit(services.bucket, key)

    return submit


@contextmanager
def _in_the_way_of(broker: redis.Redis, stream: str) -> Iterator[None]:
    """Let a key of another type stand where the stream is: the server refuses to add to it."""
    kept = broker.exists(stream) and broker.rename(stream, "kept")
    broker.set(stream, "in the way")
    yield
    broker.delete(stream)
    if kept:
        broker.rename("kept", stream)


def _retries(served: Served) -> Counter[str]:
    """Return how many retries there were so far, by their reason."""
    samples = served.samples().items()
    return Counter({labels[0][1]: int(n) for (name, labels), n in samples if name == "dnf_retries_total"})


def test_a_check_is_tried_as_often_as_its_fault_is_worth_and_then_kept(
    worker: RunningWorker, client: Client, submit: Callable[[int], str], served: Served
) -> None:
    """Three times when the networks or the program fail at it, as often as is set when memory is short.

    What is no check is not tried. A good one beside them has its verdict; retries are counted by reason.
    """
    before = _retries(served)
    raises, no_memory, fault, good = (submit(width) for width in (RAISES, NO_MEMORY, FAULT, 96))
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


def test_a_check_that_the_model_is_too_slow_for_is_tried_again_and_costs_no_second_pass(
    worker: RunningWorker,
    client: Client,
    submit: Callable[[int], str],
    served: Served,
    wait_until: Callable[..., None],
) -> None:
    """One is at it when its time is over, one waits behind it; the one that waits is taken out."""
    before = served.figure("dnf_batch_size_sum") or 0
    slow = submit(SLOW_ONCE)
    wait_until(lambda: served.figure("dnf_batcher_stalled_seconds"), "the model is at it")
    waits = submit(96)
    client.wait_for(slow, waits, timeout_seconds=60 * PATIENCE)
    for check_id in (slow, waits):
        (line,) = worker.wait_for_event("check_retried", check_id=check_id)
        assert "ModelFailedError: TimeoutError" in line["error"]
    assert (served.figure("dnf_batch_size_sum") or 0) - before == 3


def test_a_verdict_that_the_broker_refuses_is_published_when_it_takes_it(
    worker: RunningWorker, client: Client, submit: Callable[[int], str], broker: redis.Redis, served: Served
) -> None:
    """However many tries that takes: what is done is no dead letter."""
    before, since = _retries(served), client.position()
    with _in_the_way_of(broker, "verdicts"):
        check_id = submit(96)
        worker.wait_for_event("check_retried", check_id=check_id, count=MAX_RETRIES + 1)
    client.wait_for(check_id, timeout_seconds=60 * PATIENCE, since=since)
    assert (_retries(served) - before).keys() == {"broker"}


def test_a_dead_letter_that_the_broker_refuses_is_written_when_it_takes_it(
    worker: RunningWorker, client: Client, services: EmbeddedServices, broker: redis.Redis
) -> None:
    """The message is tried again until then."""
    with _in_the_way_of(broker, "dead-letters"):
        check_id = client.submit(services.bucket, "retries/96.jpg", policy="stricter")
        worker.wait_for_event("check_retried", check_id=check_id)
    (dead_letter,) = worker.wait_for_event("check_dead_lettered", check_id=check_id)
    assert dead_letter["reason"] == "unknown_policy"


def test_a_check_whose_retry_the_broker_refuses_goes_back_to_its_queue(
    worker: RunningWorker, client: Client, submit: Callable[[int], str], broker: redis.Redis
) -> None:
    """Celery would drop it: it is tried after a rest, and judged once the broker takes commands again."""
    since = client.position()
    with _in_the_way_of(broker, "verdicts"):
        check_id = submit(96)
        worker.wait_for_event("check_retried", check_id=check_id)
        broker.execute_command("ACL", "SETUSER", "default", "-lpush")
        try:
            tries = len(worker.wait_for_event("check_retried", check_id=check_id))
            lines = worker.wait_for_event("check_retried", check_id=check_id, count=tries + 2)
        finally:
            broker.execute_command("ACL", "SETUSER", "default", "+@all")
    before, last = (datetime.fromisoformat(line["timestamp"]) for line in lines[tries : tries + 2])
    assert (last - before).total_seconds() >= REFUSED_SECONDS
    client.wait_for(check_id, timeout_seconds=60 * PATIENCE, since=since)
