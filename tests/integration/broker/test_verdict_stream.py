"""The verdict stream on a real Valkey."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from structlog.testing import capture_logs

from worker.broker import keys
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
        return [stream.publish(_event(f"race-{number}"), message_id="m") for number in range(500)]

    with ThreadPoolExecutor(8) as threads:
        returned = list(threads.map(publish_all, range(8)))
    published = Counter(event.check_id for event in _until_idle(stream.tail(block_seconds=0.01)))
    assert published == Counter(f"race-{number}" for number in range(500))
    assert [sum(of_check) for of_check in zip(*returned, strict=True)] == [1] * 500
    assert stream.publish_again("race-0", "m") is False
    assert stream.publish_again("race-500", "m") is None


def test_a_published_check_is_not_published_again(stream: VerdictStream) -> None:
    """The second call returns False, and the first event is unchanged."""
    assert stream.publish(_event("again"), message_id="m", thumbnail=b"first")
    assert not stream.publish(_event("again"), message_id="m", thumbnail=b"second")
    (event,) = _until_idle(stream.tail(block_seconds=0.01))
    assert stream.thumbnail(event) == b"first"


def test_a_second_submission_has_the_same_event_again_and_a_second_delivery_has_not(
    stream: VerdictStream,
) -> None:
    """Each message of a check has the event once, with the same id, however often it is delivered."""
    assert stream.publish(_event("twice"), message_id="first")
    assert stream.publish_again("twice", "first") is False
    assert stream.publish_again("twice", "second") is True
    assert stream.publish_again("twice", "second") is False
    first, second = _until_idle(stream.tail(block_seconds=0.01))
    assert (first.raw, first.envelope.id) == (second.raw, second.envelope.id)


def test_the_mark_of_a_published_check_expires_after_the_set_time(
    settings: Settings, stream: VerdictStream, broker: redis.Redis
) -> None:
    """The mark is in the stream's slot of a Redis Cluster."""
    stream.publish(_event("remembered"), message_id="m")
    ttl = broker.ttl("{verdicts}:published:remembered")
    assert settings.publish_once_ttl_seconds - 60 <= ttl <= settings.publish_once_ttl_seconds


def test_a_refused_event_leaves_no_mark(
    settings: Settings, stream: VerdictStream, broker: redis.Redis
) -> None:
    """A verdict that the server refused can be published later."""
    broker.set(settings.verdict_stream, "not a stream")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        stream.publish(_event("refused"), message_id="m")
    broker.delete(settings.verdict_stream)
    assert stream.publish(_event("refused"), message_id="m")


def _age(broker: redis.Redis, check_id: str, seconds: float) -> None:
    """Append an event as if it had been published so long ago; the stream takes older ones first."""
    milliseconds = int((float(broker.time()[0]) - seconds) * 1000)  # type: ignore[index]
    broker.xadd("verdicts", {"event": _event(check_id).model_dump_json()}, id=f"{milliseconds}-*")


def test_an_event_that_a_group_has_not_acknowledged_is_not_trimmed(
    stream: VerdictStream, broker: redis.Redis
) -> None:
    """The slowest group decides, whether it has read the event or not; without a group, the age does."""
    for age in (90, 80, 70, 5):
        _age(broker, f"aged-{age}", age)
    ages = {"min_age_seconds": 10, "retention_seconds": 3600, "spare_length": 100}
    broker.xgroup_create("verdicts", "quick", id="$")
    broker.xgroup_create("verdicts", "slow", id="0")
    stream.trim(**ages)
    assert broker.xlen("verdicts") == 4
    (_, ((first, _), (second, _))) = broker.xreadgroup("slow", "one", {"verdicts": ">"}, count=2)[0]  # type: ignore[index]
    broker.xack("verdicts", "slow", second)
    stream.trim(**ages)
    assert broker.xlen("verdicts") == 4
    broker.xack("verdicts", "slow", first)
    stream.trim(**ages)
    assert broker.xlen("verdicts") == 3
    broker.xgroup_destroy("verdicts", "slow")
    stream.trim(**ages)
    assert [event.check_id for event in _until_idle(stream.tail(block_seconds=0.01))] == ["aged-5"]


def test_young_events_go_before_the_stream_is_full(stream: VerdictStream, broker: redis.Redis) -> None:
    """Those that every group has acknowledged; without a group, the oldest beyond the length."""
    limits = {"min_age_seconds": 3600, "retention_seconds": 7200, "spare_length": 4}
    for age in (50, 40, 30, 20, 10):
        _age(broker, f"aged-{age}", age)
    stream.trim(**limits)
    assert next(event.check_id for event in _until_idle(stream.tail(block_seconds=0.01))) == "aged-40"
    broker.xgroup_create("verdicts", "slow", id="0")
    stream.trim(**limits)
    assert broker.xlen("verdicts") == 4
    ((_, entries),) = broker.xreadgroup("slow", "one", {"verdicts": ">"})  # type: ignore[misc]
    broker.xack("verdicts", "slow", *[entry_id for entry_id, _ in entries[:3]])
    stream.trim(**limits)
    assert [event.check_id for event in _until_idle(stream.tail(block_seconds=0.01))] == ["aged-10"]


def test_a_group_that_loses_events_to_the_retention_is_named(
    stream: VerdictStream, broker: redis.Redis
) -> None:
    """Events beyond the retention go in any case, and never silently."""
    for age in (90, 30):
        _age(broker, f"aged-{age}", age)
    broker.xgroup_create("verdicts", "away", id="0")
    broker.xgroup_create("verdicts", "here", id="$")
    with capture_logs() as lines:
        stream.trim(min_age_seconds=10, retention_seconds=60, spare_length=100)
        stream.trim(min_age_seconds=10, retention_seconds=60, spare_length=100)
    assert [(line["event"], line["group"]) for line in lines] == [("events_given_up", "away")]
    assert broker.xlen("verdicts") == 1


def test_a_group_member_claims_the_pending_events_of_a_dead_member(
    stream: VerdictStream, broker: redis.Redis
) -> None:
    """The group receives every event once; none is left pending."""
    for number in range(30):
        stream.publish(_event(f"group-{number}"), message_id="m", thumbnail=b"png")
    broker.xgroup_create("verdicts", "readers", id="0")
    broker.xreadgroup("readers", "dead", {"verdicts": ">"}, count=10)
    received = []
    for event in stream.consume("readers", "alive", block_seconds=0.05, claim_after_seconds=0.2):
        if event is None:
            if len(received) >= 30:
                break
            continue
        assert stream.thumbnail(event) == b"png"
        received.append(event.check_id)
        stream.acknowledge("readers", event)
    assert Counter(received) == Counter(f"group-{number}" for number in range(30))
    assert broker.xpending("verdicts", "readers")["pending"] == 0
    assert _until_idle(stream.consume("readers", "late", block_seconds=0.01, claim_after_seconds=0)) == []


def test_a_group_member_that_restarts_resumes_with_its_pending_events(stream: VerdictStream) -> None:
    """An event is delivered again until it is acknowledged."""
    for number in range(3):
        stream.publish(_event(f"again-{number}"), message_id="m")
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
    stream.publish(_event("good"), message_id="m")
    assert [event.check_id for event in _until_idle(stream.tail(block_seconds=0.01))] == ["good"]
    found = _until_idle(stream.consume("readers", "one", block_seconds=0.01))
    assert [event.check_id for event in found] == ["good"]
    assert broker.xpending("verdicts", "readers")["pending"] == 1


def test_a_slow_member_keeps_its_events_from_the_others(stream: VerdictStream) -> None:
    """A member takes one event at a time, and a renewed one is not claimed."""
    for number in range(20):
        stream.publish(_event(f"slow-{number}"), message_id="m")
    slow = stream.consume("readers", "slow", block_seconds=0.01, claim_after_seconds=0.3)
    held = next(slow)
    assert held is not None
    received: list[str] = []
    deadline = time.monotonic() + 0.6
    for event in stream.consume("readers", "quick", block_seconds=0.05, claim_after_seconds=0.3):
        if event is not None:
            received.append(event.check_id)
            stream.acknowledge("readers", event)
        elif time.monotonic() > deadline:
            break
        stream.renew("readers", "slow", held)
    stream.acknowledge("readers", held)
    assert Counter([held.check_id, *received]) == Counter(f"slow-{number}" for number in range(20))


def test_a_dead_members_events_are_found_behind_those_of_a_busy_one(
    stream: VerdictStream, broker: redis.Redis
) -> None:
    """The search for pending events goes on where it ended, past a hundred that cannot be claimed yet.

    XAUTOCLAIM looks at ten pending events in a call.
    """
    for number in range(120):
        stream.publish(_event(f"pending-{number}"), message_id="m")
    broker.xgroup_create("verdicts", "readers", id="0")
    broker.xreadgroup("readers", "busy", {"verdicts": ">"}, count=100)
    broker.xreadgroup("readers", "dead", {"verdicts": ">"}, count=20)
    dead = broker.xpending_range("verdicts", "readers", "-", "+", 20, consumername="dead")
    broker.xclaim(
        "verdicts", "readers", "dead", 0, [each["message_id"] for each in dead], idle=60_000, justid=True
    )
    found: list[str] = []
    for event in stream.consume("readers", "alive", block_seconds=0.001, claim_after_seconds=30):
        if event is not None:
            found.append(event.check_id)
            stream.acknowledge("readers", event)
        if len(found) == 20:
            break
    assert Counter(found) == Counter(f"pending-{number}" for number in range(100, 120))


def test_a_group_that_vanished_is_made_again(stream: VerdictStream, broker: redis.Redis) -> None:
    """After FLUSHDB or a failover that lost it, consumption goes on from the oldest event."""
    stream.publish(_event("before"), message_id="m")
    events = stream.consume("readers", "one", block_seconds=0.01)
    first = next(events)
    assert first is not None
    broker.flushdb()
    assert next(events) is None
    stream.publish(_event("after"), message_id="m")
    again = next(events)
    assert again is not None
    assert again.check_id == "after"


def test_an_attempt_ends_with_the_event_that_it_publishes(stream: VerdictStream, broker: redis.Redis) -> None:
    """In one step, also where the check had its event before: a death after it is not blamed on the check."""
    for process in ("by:first", "by:second"):
        broker.hset(keys.attempts("ended"), process, "1.0")
    assert stream.publish(_event("ended"), message_id="m", ending_attempt="by:first")
    assert broker.hkeys(keys.attempts("ended")) == [b"by:second"]
    assert not stream.publish(_event("ended"), message_id="m", ending_attempt="by:second")
    assert not broker.exists(keys.attempts("ended"))


def test_a_message_is_acknowledged_with_its_event(stream: VerdictStream, broker: redis.Redis) -> None:
    """In one step, also where the check had its event before, and no other message is."""
    for tag in ("first", "second", "other"):
        broker.hset(keys.UNACKED, tag, "an entry")
        broker.zadd(keys.UNACKED_INDEX, {tag: 1.0})
    assert stream.publish(_event("acknowledged"), message_id="m", acknowledging="first")
    assert not stream.publish(_event("acknowledged"), message_id="m", acknowledging="second")
    assert broker.hkeys(keys.UNACKED) == [b"other"]
    assert broker.zrange(keys.UNACKED_INDEX, 0, -1) == [b"other"]
