"""The verdict stream on a real Valkey."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from worker.broker.connection import connect
from worker.broker.verdict_stream import VerdictStream
from worker.contract.messages import Rejection, RejectionEvent
from worker.settings import Settings


@pytest.fixture
def settings(new_database: Callable[[], str]) -> Settings:
    """Return settings on an empty database."""
    return Settings(redis_url=new_database())


@pytest.fixture
def broker(settings: Settings) -> Iterator[redis.Redis]:
    """Provide a client of the database."""
    with connect(settings.broker) as client:
        yield client


@pytest.fixture
def stream(settings: Settings) -> Iterator[VerdictStream]:
    """Provide the verdict stream, empty."""
    stream = VerdictStream.connect(settings)
    yield stream
    stream.close()


def _event(check_id: str) -> RejectionEvent:
    data = Rejection(
        check_id=check_id,
        policy="default",
        durations_ms={"total": 1.0},
        attempt=1,
        worker="test",
        metadata={},
        reason="empty",
        detail="The file is empty.",
    )
    return RejectionEvent(id=check_id, source="test", subject="s3://bucket/key", data=data)


def _until_idle(events: Iterator[Any]) -> list[Any]:
    return list(iter(lambda: next(events), None))


def test_eight_threads_racing_on_500_checks_publish_each_once(stream: VerdictStream) -> None:
    """The first one publishes; `publish` returns True to exactly one of the eight."""

    def publish_all(_thread: int) -> list[bool]:
        return [stream.publish(_event(f"race-{number}")) for number in range(500)]

    with ThreadPoolExecutor(8) as threads:
        returned = list(threads.map(publish_all, range(8)))
    published = Counter(event.check_id for event in _until_idle(stream.tail(block_seconds=0.01)))
    assert published == Counter(f"race-{number}" for number in range(500))
    assert [sum(of_check) for of_check in zip(*returned, strict=True)] == [1] * 500
    assert stream.is_published("race-0")
    assert not stream.is_published("race-500")


def test_a_published_check_is_not_published_again(stream: VerdictStream) -> None:
    """The second call returns False, and the first event is unchanged."""
    assert stream.publish(_event("again"), thumbnail=b"first")
    assert not stream.publish(_event("again"), thumbnail=b"second")
    assert [event.thumbnail for event in _until_idle(stream.tail(block_seconds=0.01))] == [b"first"]


def test_the_mark_of_a_published_check_expires_after_the_set_time(
    settings: Settings, stream: VerdictStream, broker: redis.Redis
) -> None:
    """The mark is in the stream's slot of a Redis Cluster."""
    stream.publish(_event("remembered"))
    ttl = broker.ttl("{verdicts}:published:remembered")
    assert settings.publish_once_ttl_seconds - 60 <= ttl <= settings.publish_once_ttl_seconds


def test_a_refused_event_leaves_no_mark(
    settings: Settings, stream: VerdictStream, broker: redis.Redis
) -> None:
    """A verdict that the server refused can be published later."""
    broker.set(settings.verdict_stream, "not a stream")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        stream.publish(_event("refused"))
    broker.delete(settings.verdict_stream)
    assert stream.publish(_event("refused"))


def test_the_stream_is_trimmed_to_about_its_maximum_length(settings: Settings, broker: redis.Redis) -> None:
    """The oldest events are trimmed first, in whole nodes of 100."""
    stream = VerdictStream.connect(settings.model_copy(update={"verdict_stream_max_length": 100}))
    for number in range(450):
        stream.publish(_event(f"trimmed-{number}"))
    assert 100 <= broker.xlen(settings.verdict_stream) <= 200
    stream.close()


def test_a_group_member_claims_the_pending_events_of_a_dead_member(
    stream: VerdictStream, broker: redis.Redis
) -> None:
    """The group receives every event once; none is left pending."""
    for number in range(30):
        stream.publish(_event(f"group-{number}"), thumbnail=b"png")
    broker.xgroup_create("verdicts", "readers", id="0")
    broker.xreadgroup("readers", "dead", {"verdicts": ">"}, count=10)
    received = []
    for event in stream.consume("readers", "alive", block_seconds=0.05, claim_after_seconds=0.2):
        if event is None:
            if len(received) >= 30:
                break
            continue
        assert event.thumbnail == b"png"
        received.append(event.check_id)
        stream.acknowledge("readers", event)
    assert Counter(received) == Counter(f"group-{number}" for number in range(30))
    assert broker.xpending("verdicts", "readers")["pending"] == 0
    assert _until_idle(stream.consume("readers", "late", block_seconds=0.01, claim_after_seconds=0)) == []


def test_a_group_member_that_restarts_resumes_with_its_pending_events(stream: VerdictStream) -> None:
    """An event is delivered again until it is acknowledged."""
    for number in range(3):
        stream.publish(_event(f"again-{number}"))
    events = stream.consume("readers", "one", block_seconds=0.01)
    first = next(events)
    assert first is not None
    stream.acknowledge("readers", first)
    next(events)
    again = _until_idle(stream.consume("readers", "one", block_seconds=0.01))
    assert [event.check_id for event in again] == ["again-1", "again-2"]


def test_a_malformed_entry_is_skipped(stream: VerdictStream, broker: redis.Redis) -> None:
    """A consumer group acknowledges it, so that it is not delivered again."""
    broker.xadd("verdicts", {"event": b"{]"})
    broker.xadd("verdicts", {"other": b"field"})
    stream.publish(_event("good"))
    assert [event.check_id for event in _until_idle(stream.tail(block_seconds=0.01))] == ["good"]
    found = _until_idle(stream.consume("readers", "one", block_seconds=0.01))
    assert [event.check_id for event in found] == ["good"]
    assert broker.xpending("verdicts", "readers")["pending"] == 1
