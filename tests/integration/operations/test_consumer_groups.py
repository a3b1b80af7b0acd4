"""How long an event waits for a consumer group, read from a real stream by the exporter and the doctor."""

from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
import redis

from worker.broker.consumer_groups import consumer_groups
from worker.operations.exporter import QueueCollector
from worker.settings import Settings

STREAM = "verdicts"
HOUR = 3600


@pytest.fixture
def url(new_database: Callable[[], str]) -> str:
    """Provide the URL of an empty database."""
    return new_database()


@pytest.fixture
def broker(url: str) -> Iterator[redis.Redis]:
    """Provide a connection to it."""
    with redis.Redis.from_url(url) as client:
        yield client


def _ages(broker: redis.Redis) -> dict[str, int | None]:
    now = int(broker.time()[0])  # type: ignore[index]
    return {
        group.name: None if group.waiting_since is None else round((now - group.waiting_since) / HOUR)
        for group in consumer_groups(broker, STREAM)
    }


def _publish(broker: redis.Redis, hours_ago: int) -> None:
    now = int(broker.time()[0])  # type: ignore[index]
    broker.xadd(STREAM, {"event": "{}"}, id=f"{(now - hours_ago * HOUR) * 1000}-1")


def test_a_groups_age_is_that_of_its_oldest_event_without_acknowledgement(broker: redis.Redis) -> None:
    """Not read, read and not acknowledged, all acknowledged; a stream that does not exist has no group."""
    assert consumer_groups(broker, STREAM) == []
    for hours_ago in (30, 20, 10):
        _publish(broker, hours_ago)
    for name in ("away", "stuck", "prompt"):
        broker.xgroup_create(STREAM, name, id="0")
    (_, read), *_ = broker.xreadgroup("stuck", "member", {STREAM: ">"})
    broker.xack(STREAM, "stuck", read[0][0])
    (_, read), *_ = broker.xreadgroup("prompt", "member", {STREAM: ">"})
    broker.xack(STREAM, "prompt", *[entry_id for entry_id, _ in read])
    assert _ages(broker) == {"away": 30, "prompt": None, "stuck": 20}
    facts = {group.name: (group.lag, group.pending) for group in consumer_groups(broker, STREAM)}
    assert facts == {"away": (3, 0), "prompt": (0, 0), "stuck": (0, 2)}


def test_an_event_after_a_quiet_time_is_new(broker: redis.Redis) -> None:
    """What every group has acknowledged is trimmed, and does not count as waiting."""
    _publish(broker, 90)
    broker.xgroup_create(STREAM, "readers", id="0")
    (_, read), *_ = broker.xreadgroup("readers", "member", {STREAM: ">"})
    broker.xack(STREAM, "readers", read[0][0])
    broker.xtrim(STREAM, maxlen=0)
    assert _ages(broker) == {"readers": None}
    _publish(broker, 0)
    assert _ages(broker) == {"readers": 0}


def test_the_exporter_names_the_groups_ages_and_the_limits(broker: redis.Redis, url: str) -> None:
    """An alert compares an age with the retention, and every limit that stops workers with one."""
    for hours_ago in (30, 20):
        _publish(broker, hours_ago)
    broker.xgroup_create(STREAM, "away", id="0")
    broker.xadd("dead-letters", {"letter": "{}"})
    settings = Settings(  # type: ignore[call-arg]
        redis_url=url,
        verdict_stream_max_length=4,
        dead_letter_stream_max_length=10,
        verdict_retention_seconds=40 * HOUR,
    )
    with closing(QueueCollector(settings)) as collector:
        samples = {
            (sample.name, *sample.labels.values()): sample.value
            for metric in collector.collect()
            for sample in metric.samples
        }
    age = samples["dnf_verdict_stream_oldest_unacknowledged_age_seconds", "away"]
    assert age == pytest.approx(30 * HOUR, abs=60)
    assert samples["dnf_verdict_retention_seconds",] == 40 * HOUR
    assert samples["dnf_intake_limit_used_ratio", "verdict_stream"] == 0.5
    assert samples["dnf_intake_limit_used_ratio", "dead_letters"] == 0.1
