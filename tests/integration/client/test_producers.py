"""What platforms rely on when they submit, without a worker."""

import base64
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from kombu.utils.json import loads

from worker.broker.verdict_stream import VerdictStream
from worker.client import Client, NoVerdictError, QueueFullError, QueueUnreachableError
from worker.contract.envelope import decode
from worker.contract.messages import ImageCheck, Rejection, RejectionEvent
from worker.embedded.services import EmbeddedServices
from worker.embedded.startup import free_ports
from worker.settings import Settings

URGENT = "image-checks.urgent"


@pytest.fixture
def settings(services: EmbeddedServices) -> Settings:
    """Return settings on a database that is empty, with room for a thousand checks in a queue."""
    settings = Settings(redis_url=services.redis_url.removesuffix("/0") + "/211", max_queue_length=1000)
    with redis.Redis.from_url(settings.redis_url.get_secret_value()) as broker:
        broker.flushdb()
    return settings


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
    """Return the checks in a queue as a worker would take them, first one first."""
    entries: Any = broker.lrange(queue, 0, -1)
    payloads = [decode(entry, queue, longest_wait_seconds=1) for entry in reversed(entries)]
    bodies = [loads(base64.b64decode(payload["body"])) for payload in payloads]
    return [ImageCheck.model_validate(args[0]) for args, _, _ in bodies]


def test_many_checks_are_enqueued_in_their_order(settings: Settings, broker: redis.Redis) -> None:
    """All of them, each whole, on the queue that was asked for; the ids come back in the same order."""
    checks = _checks(950)
    with Client(settings) as client:
        assert client.submit_many(iter(checks), queue="image-checks.urgent") == [c.check_id for c in checks]
        assert client.submit_many([]) == []
    assert _queued(broker, URGENT) == checks


def test_one_check_and_many_are_enqueued_alike(settings: Settings, broker: redis.Redis) -> None:
    """A worker sees no difference between what Celery sends and what is sent in one step."""
    one, other = _checks(2)
    with Client(settings) as client:
        client.submit_check(one)
        client.submit_many([other])
    assert _queued(broker) == [one, other]


def test_a_full_queue_refuses_more_and_says_so(settings: Settings, broker: redis.Redis) -> None:
    """The other queues still take checks; when there is room again, so does this one."""
    with Client(settings) as client:
        client.submit_many(_checks(1000))
        with pytest.raises(QueueFullError, match="1000 checks wait in image-checks; the limit is 1000"):
            client.submit("uploads", "a.jpg")
        with pytest.raises(QueueFullError):
            client.submit_many(_checks(3))
        client.submit("uploads", "a.jpg", queue="image-checks.bulk")
        broker.rpop("image-checks")
        with pytest.raises(QueueFullError):
            client.submit_many(_checks(2))  # there is room for one of them
        client.submit("uploads", "a.jpg")
    assert broker.llen("image-checks") == 1000


def test_a_broker_that_cannot_be_reached_is_named() -> None:
    """Nothing hangs: the producer is told within the time of its retries."""
    settings = Settings(redis_url=f"redis://127.0.0.1:{free_ports(1)[0]}/0")
    with Client(settings) as client, ThreadPoolExecutor(2) as threads:
        one, many = (
            threads.submit(client.submit, "uploads", "a.jpg"),
            threads.submit(client.submit_many, _checks(2)),
        )
        for submitted in (one, many):
            with pytest.raises(QueueUnreachableError):
                submitted.result()


def test_a_check_of_which_nothing_is_heard_is_submitted_again_under_its_id(
    settings: Settings, broker: redis.Redis
) -> None:
    """After the time that was set and then after twice as much; one named by its id alone is only awaited."""
    lost, *_ = _checks(1)
    with Client(settings) as client, pytest.raises(NoVerdictError) as failed:
        client.wait_for(
            lost, "by-id", timeout_seconds=2.5, resubmit_after_seconds=0.5, queue="image-checks.urgent"
        )
    assert failed.value.missing == {lost.check_id, "by-id"}
    # At 0.5, 1 and 2 seconds.
    assert _queued(broker, URGENT) == [lost] * 3


def test_a_consumer_resumes_under_its_name_and_another_claims_what_it_left(
    settings: Settings, broker: redis.Redis
) -> None:
    """What was received and never acknowledged comes again: at once to the same name, later to another."""
    results = VerdictStream.connect(settings)
    for number in range(4):
        data = Rejection(
            check_id=f"left-{number}",
            policy="default",
            durations_ms={"total": 1.0},
            attempt=1,
            worker="test",
            metadata={},
            reason="empty",
            detail="The file is empty.",
        )
        results.publish(RejectionEvent(id=f"{number}", source="test", subject="s3://bucket/key", data=data))
    results.close()

    def received(name: str, *, acknowledged: int) -> list[str]:
        with Client(settings) as client:
            delivered = list(client.verdicts("group", consumer=name, follow=False, claim_after_seconds=0.2))
            for each in delivered[:acknowledged]:
                each.ack()
        return [each.event.check_id for each in delivered]

    assert received("first", acknowledged=1) == ["left-0", "left-1", "left-2", "left-3"]
    assert received("first", acknowledged=1) == ["left-1", "left-2", "left-3"]
    deadline = time.monotonic() + 30
    claimed: list[str] = []
    while len(claimed) < 2 and time.monotonic() < deadline:
        claimed += received("second", acknowledged=4)
    assert claimed == ["left-2", "left-3"]
    assert broker.xpending(settings.verdict_stream, "group")["pending"] == 0  # type: ignore[index]
