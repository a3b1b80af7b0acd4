"""What plain Celery writes: which options a check takes, and which ones make it a dead letter."""

import json
from base64 import b64decode
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from celery import Celery

from worker.contract.envelope import decode
from worker.contract.messages import InvalidMessageError
from worker.settings import Settings

CHECK = {"check_id": "c-1", "bucket": "uploads", "key": "a.jpg"}
VISIBILITY_SECONDS = 120


@pytest.fixture
def app(settings: Settings) -> Celery:
    """Provide an application of a producer that has nothing of this project."""
    url = settings.redis_url.get_secret_value()
    return Celery(broker=url, backend=url, set_as_current=False)


def _decoded(app: Celery, broker: redis.Redis, task: str = "check_image", **options: Any) -> dict[str, Any]:
    """Send a task; return the payload that a worker would hand to Celery."""
    app.send_task(task, **{"args": [CHECK], "queue": "image-checks", **options})
    # kombu has a list of its own for each priority, and its workers take from all of them.
    (queue,) = (key for key in broker.keys("image-checks*"))
    entry: Any = broker.rpop(queue)
    seconds, microseconds = broker.time()  # type: ignore[misc]
    return decode(
        entry,
        "image-checks",
        tag="t",
        server_time=seconds + microseconds / 1e6,
        longest_wait_seconds=VISIBILITY_SECONDS,
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "gzip"},
        {"countdown": 30},
        {"eta": datetime.now(UTC) + timedelta(seconds=30)},
        {"expires": 0.001},
        {"priority": 9},
        {"headers": {"anything": [1]}},
        {"time_limit": 1, "soft_time_limit": 1, "retry": False, "ignore_result": True},
        {"task_id": "my-own"},
    ],
    ids=lambda options: " ".join(options) or "none",
)
def test_celerys_options_that_a_check_takes(
    app: Celery, broker: redis.Redis, options: dict[str, Any]
) -> None:
    """The check arrives unchanged; what has no meaning here is ignored."""
    payload = _decoded(app, broker, **options)
    assert json.loads(json.loads(b64decode(payload["body"]))[0][0]) == CHECK


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"task": "check_picture"}, "unknown_task"),
        ({"args": [], "kwargs": {"check": CHECK}}, "malformed_message"),
        ({"args": [CHECK, "more"]}, "malformed_message"),
        ({"link": Celery(set_as_current=False).signature("other")}, "malformed_message"),
        ({"countdown": VISIBILITY_SECONDS + 60}, "malformed_message"),
        ({"serializer": "pickle"}, "unreadable_entry"),
        ({"compression": "bzip2"}, "unreadable_entry"),
    ],
    ids=str,
)
def test_celerys_options_that_make_a_dead_letter(
    app: Celery, broker: redis.Redis, options: dict[str, Any], reason: str
) -> None:
    """With this reason."""
    with pytest.raises(InvalidMessageError) as refused:
        _decoded(app, broker, **options)
    assert refused.value.reason == reason


def test_the_first_message_protocol_makes_a_dead_letter(app: Celery, broker: redis.Redis) -> None:
    """`task_protocol = 1` is Celery 3's."""
    app.conf.task_protocol = 1
    with pytest.raises(InvalidMessageError) as refused:
        _decoded(app, broker)
    assert refused.value.reason == "unreadable_entry"
