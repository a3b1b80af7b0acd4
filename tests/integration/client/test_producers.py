"""What platforms rely on when they submit checks and consume events, without a worker."""

import base64
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from worker.broker.verdict_stream import VerdictStream
from worker.client import Client, NoVerdictError, QueueFullError, QueueUnreachableError
from worker.contract.envelope import decode
from worker.contract.messages import ImageCheck, Rejection, RejectionEvent
from worker.embedded.startup import free_ports
from worker.settings import Settings

URGENT = "image-checks.urgent"


@pytest.fixture
def settings(new_database: Callable[[], str]) -> Settings:
    """Return settings on an empty database; a queue holds at most 1000 checks."""
    return Settings(redis_url=new_database(), max_queue_length=1000)


@pytest.fixture
def broker(settings: Settings) -> Iterator[redis.Redis]:
    """Provide a client of the database."""
    with redis.Redis.from_url(settings.redis_url.get_secret_value()) as broker:
        yield broker


def _checks(count: int) -> list[ImageCheck]:
    return [
        ImageCheck(bucket="uploads", key=f"{number}.jpg", metadata={"ü": number}) for number in range(count)
    ]


def _queued(broker: redis.Redis, queue: str = "image-checks") -> list[ImageCheck]:
    """Return the checks in a queue in the order in which a worker would take them."""
    entries: Any = broker.lrange(queue, 0, -1)
    payloads = [
        decode(entry, queue, tag="t", server_time=time.time(), longest_wait_seconds=1)
        for entry in reversed(entries)
    ]
    bodies = [json.loads(base64.b64decode(payload["body"])) for payload in payloads]
    return [ImageCheck.model_validate_json(args[0]) for args, _, _ in bodies]


def test_many_checks_are_enqueued_in_order(settings: Settings, broker: redis.Redis) -> None:
    """On the named queue, unchanged; the ids are returned in the same order."""
    checks = _checks(950)
    with Client(settings) as client:
        assert client.submit_many(iter(checks), queue="image-checks.urgent") == [c.check_id for c in checks]
        assert client.submit_many([]) == []
    assert _queued(broker, URGENT) == checks


def test_submit_check_and_submit_many_enqueue_the_same_message(
    settings: Settings, broker: redis.Redis
) -> None:
    """Celery writes the first, our own code the second."""
    one, other = _checks(2)
    with Client(settings) as client:
        client.submit_check(one)
        client.submit_many([other])
    assert _queued(broker) == [one, other]


def test_a_full_queue_raises_an_error_that_names_the_limit(settings: Settings, broker: redis.Redis) -> None:
    """The other queues accept checks meanwhile, and so does this one when it is shorter again."""
    with Client(settings) as client:
        client.submit_many(_checks(1000))
        with pytest.raises(QueueFullError, match="1000 checks wait in image-checks; the limit is 1000"):
            client.submit("uploads", "a.jpg")
        with pytest.raises(QueueFullError):
            client.submit_many(_checks(3))
        client.submit("uploads", "a.jpg", queue="image-checks.bulk")
        broker.rpop("image-checks")
        with pytest.raises(QueueFullError):
            client.submit_many(_checks(2))  # one would fit
        client.submit("uploads", "a.jpg")
    assert broker.llen("image-checks") == 1000


@pytest.mark.usefixtures("no_back_off")
def test_an_unreachable_broker_raises_an_error() -> None:
    """After the retries, for one check and for many."""
    settings = Settings(redis_url=f"redis://127.0.0.1:{free_ports(1)[0]}/0")
    with Client(settings) as client, ThreadPoolExecutor(2) as threads:
        one, many = (
            threads.submit(client.submit, "uploads", "a.jpg"),
            threads.submit(client.submit_many, _checks(2)),
        )
        for submitted in (one, many):
            with pytest.raises(QueueUnreachableError):
                submitted.result()


def test_a_check_without_an_event_is_submitted_again_under_its_id(
    settings: Settings, broker: redis.Redis
) -> None:
    """After the set time and each time after twice as long; a check known by its id alone is only awaited."""
    lost, *_ = _checks(1)
    with Client(settings) as client, pytest.raises(NoVerdictError) as failed:
        client.wait_for(
            lost, "by-id", timeout_seconds=2.5, resubmit_after_seconds=0.5, queue="image-checks.urgent"
        )
    assert failed.value.missing == {lost.check_id, "by-id"}
    # At 0.5, 1 and 2 seconds.
    assert _queued(broker, URGENT) == [lost] * 3


def test_a_consumer_resumes_under_its_name_and_another_claims_its_pending_events(
    settings: Settings, broker: redis.Redis
) -> None:
    """An unacknowledged event is delivered again: at once under the same name, later to another member."""
    stream = VerdictStream.connect(settings)
    for number in range(4):
        data = Rejection(
            check_id=f"check-{number}",
            policy="default",
            durations_ms={"total": 1.0},
            attempt=1,
            worker="test",
            metadata={},
            reason="empty",
            detail="The file is empty.",
        )
        stream.publish(
            RejectionEvent(id=f"{number}", source="test", subject="s3://bucket/key", data=data),
            message_id="m",
        )
    stream.close()

    def received(name: str, *, acknowledged: int) -> list[str]:
        with Client(settings) as client:
            delivered = list(client.verdicts("group", consumer=name, follow=False, claim_after_seconds=0.2))
            for each in delivered[:acknowledged]:
                each.ack()
        return [each.event.check_id for each in delivered]

    assert received("first", acknowledged=1) == ["check-0", "check-1", "check-2", "check-3"]
    assert received("first", acknowledged=1) == ["check-1", "check-2", "check-3"]
    deadline = time.monotonic() + 30
    claimed: list[str] = []
    while len(claimed) < 2 and time.monotonic() < deadline:
        claimed += received("second", acknowledged=4)
    assert claimed == ["check-2", "check-3"]
    assert broker.xpending(settings.verdict_stream, "group")["pending"] == 0  # type: ignore[index]
