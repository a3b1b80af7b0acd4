"""What platforms rely on when they submit checks and consume events, without a worker."""

import base64
import json
import time
from typing import Any

import pytest
import redis

from tests.integration.client.conftest import Publish
from worker.client import Client, NoVerdictError, QueueFullError, UnknownQueueError
from worker.contract.envelope import decode
from worker.contract.messages import ImageCheck
from worker.settings import Settings

URGENT = "image-checks.urgent"


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
    """One way writes both."""
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


@pytest.mark.parametrize("queue", ["image-check", "image-checks.urgnet", "celery"])
def test_a_misspelt_queue_is_refused(settings: Settings, broker: redis.Redis, queue: Any) -> None:
    """No worker would take from it; nothing is enqueued, however the check is submitted."""
    with Client(settings) as client:
        for submit in (
            lambda: client.submit("uploads", "a.jpg", queue=queue),
            lambda: client.submit_many(_checks(2), queue=queue),
        ):
            with pytest.raises(UnknownQueueError, match=f"There is no queue {queue}: .*image-checks"):
                submit()
    assert broker.keys("*") == []


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
    settings: Settings, broker: redis.Redis, publish: Publish
) -> None:
    """An unacknowledged event is delivered again: at once under the same name, later to another member."""
    for number in range(4):
        publish(f"check-{number}")

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
