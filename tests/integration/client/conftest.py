"""A database for each test, and events as workers publish them."""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
import redis

from worker.broker.verdict_stream import VerdictStream
from worker.contract.messages import Rejection, RejectionEvent
from worker.settings import Settings

#: Publishes the event of a check.
Publish = Callable[[str], None]


@pytest.fixture
def settings(new_database: Callable[[], str]) -> Settings:
    """Return settings on an empty database; a queue holds at most 1000 checks."""
    return Settings(redis_url=new_database(), max_queue_length=1000)


@pytest.fixture
def broker(settings: Settings) -> Iterator[redis.Redis]:
    """Provide a client of the database."""
    with redis.Redis.from_url(settings.redis_url.get_secret_value()) as broker:
        yield broker


@pytest.fixture
def publish(settings: Settings) -> Iterator[Publish]:
    """Provide a function that publishes a check's event, a rejection."""
    with closing(VerdictStream.connect(settings)) as stream:

        def publish(check_id: str) -> None:
            stream.publish(rejection(check_id), message_id="m")

        yield publish


def rejection(check_id: str, **fields: Any) -> RejectionEvent:
    """Return the event of a rejected check; `fields` are others of `Rejection`."""
    values: dict[str, Any] = {
        "check_id": check_id,
        "policy": "default",
        "durations_ms": {"total": 1.0},
        "attempt": 1,
        "worker": "test",
        "metadata": {},
        "reason": "empty",
        "detail": "The file is empty.",
    }
    data = Rejection(**{**values, **fields})
    return RejectionEvent(id=check_id, source="test", subject="s3://bucket/key", data=data)
