"""The results queue on a real Valkey."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from worker.broker.connection import connect
from worker.broker.verdict_stream import VerdictStream
from worker.contract.messages import Rejection, RejectionEvent
from worker.settings import Settings


@pytest.fixture
def settings(service_environment: dict[str, str]) -> Settings:
    """Return settings on this module's database."""
    values: dict[str, Any] = {
        name.removeprefix("DNF_").lower(): value for name, value in service_environment.items()
    }
    return Settings(**values)


@pytest.fixture
def broker(settings: Settings) -> Iterator[redis.Redis]:
    """Provide a client of the database, emptied."""
    with connect(settings.broker) as client:
        client.flushdb()
        yield client


@pytest.fixture
def results(settings: Settings, broker: redis.Redis) -> Iterator[VerdictStream]:
    """Provide the results queue of an empty database."""
    assert broker.dbsize() == 0
    results = VerdictStream.connect(settings)
    yield results
    results.close()


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


def _drained(events: Iterator[Any]) -> list[Any]:
    return list(iter(lambda: next(events), None))


def test_eight_threads_racing_on_five_hundred_checks_publish_each_once(results: VerdictStream) -> None:
    """Whoever comes first publishes; exactly one of the eight is told that it did."""

    def publish_all(_lane: int) -> list[bool]:
        return [results.publish(_event(f"race-{number}")) for number in range(500)]

    with ThreadPoolExecutor(8) as threads:
        lanes = list(threads.map(publish_all, range(8)))
    published = Counter(event.check_id for event in _drained(results.tail(block_seconds=0.01)))
    assert published == Counter(f"race-{number}" for number in range(500))
    assert [sum(told) for told in zip(*lanes, strict=True)] == [1] * 500
    assert results.is_published("race-0")
    assert not results.is_published("race-500")


def test_a_check_that_was_published_is_not_published_again(results: VerdictStream) -> None:
    """The second call says so, and the first event stays as it was."""
    assert results.publish(_event("again"), thumbnail=b"first")
    assert not results.publish(_event("again"), thumbnail=b"second")
    assert [event.thumbnail for event in _drained(results.tail(block_seconds=0.01))] == [b"first"]


def test_a_published_check_is_remembered_for_the_time_that_is_set(
    settings: Settings, results: VerdictStream, broker: redis.Redis
) -> None:
    """The mark expires; it lies in the stream's slot of a Redis Cluster."""
    results.publish(_event("remembered"))
    ttl = broker.ttl("{verdicts}:published:remembered")
    assert settings.publish_once_ttl_seconds - 60 <= ttl <= settings.publish_once_ttl_seconds


def test_an_event_that_the_server_refuses_leaves_no_mark(
    settings: Settings, results: VerdictStream, broker: redis.Redis
) -> None:
    """A verdict that could not be written may be published later."""
    broker.set(settings.verdict_stream, "not a stream")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        results.publish(_event("refused"))
    broker.delete(settings.verdict_stream)
    assert results.publish(_event("refused"))


def test_the_stream_keeps_about_as_many_events_as_are_set(settings: Settings, broker: redis.Redis) -> None:
    """Old events are trimmed away, in whole nodes of a hundred."""
    results = VerdictStream.connect(settings.model_copy(update={"verdict_stream_max_length": 100}))
    for number in range(450):
        results.publish(_event(f"trimmed-{number}"))
    assert 100 <= broker.xlen(settings.verdict_stream) <= 200
    results.close()


def test_a_group_shares_the_events_and_takes_over_what_a_dead_member_left(
    results: VerdictStream, broker: redis.Redis
) -> None:
    """What one member received and never acknowledged comes to another one, and nothing comes twice."""
    for number in range(30):
        results.publish(_event(f"group-{number}"), thumbnail=b"png")
    # A member that asks for ten and dies.
    broker.xgroup_create("verdicts", "readers", id="0")
    broker.xreadgroup("readers", "dead", {"verdicts": ">"}, count=10)
    received = []
    for event in results.consume("readers", "alive", block_seconds=0.05, claim_after_seconds=0.2):
        if event is None:
            if len(received) >= 30:
                break
            continue
        assert event.thumbnail == b"png"
        received.append(event.check_id)
        results.acknowledge("readers", event)
    assert Counter(received) == Counter(f"group-{number}" for number in range(30))
    assert broker.xpending("verdicts", "readers")["pending"] == 0
    assert _drained(results.consume("readers", "late", block_seconds=0.01, claim_after_seconds=0)) == []


def test_a_member_that_comes_back_begins_with_what_it_did_not_acknowledge(results: VerdictStream) -> None:
    """An event is delivered again until it was dealt with."""
    for number in range(3):
        results.publish(_event(f"again-{number}"))
    events = results.consume("readers", "one", block_seconds=0.01)
    first = next(events)
    assert first is not None
    results.acknowledge("readers", first)
    next(events)
    again = _drained(results.consume("readers", "one", block_seconds=0.01))
    assert [event.check_id for event in again] == ["again-1", "again-2"]


def test_an_entry_that_is_no_event_stops_nobody(results: VerdictStream, broker: redis.Redis) -> None:
    """It is skipped, and in a group acknowledged, so that it does not come again."""
    broker.xadd("verdicts", {"event": b"{]"})
    broker.xadd("verdicts", {"other": b"field"})
    results.publish(_event("good"))
    assert [event.check_id for event in _drained(results.tail(block_seconds=0.01))] == ["good"]
    found = _drained(results.consume("readers", "one", block_seconds=0.01))
    assert [event.check_id for event in found] == ["good"]
    assert broker.xpending("verdicts", "readers")["pending"] == 1
