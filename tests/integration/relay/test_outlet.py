"""Decisions in the database are published on their stream, each once."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from urllib.request import urlopen

import pytest
import redis

from tests.deciding import take_decision
from tests.relay_process import RelayProcess
from tests.verdicts import verdict_event
from worker.broker.decision_stream import DecisionStream
from worker.broker.verdict_stream import VerdictStream
from worker.contract.messages import read_decision
from worker.database.database import Database
from worker.embedded.startup import HOST, free_ports
from worker.reviews import outbox
from worker.reviews.decisions import Decided
from worker.settings import Settings


@pytest.fixture
def decided(database: Database, relay_settings: Settings) -> Callable[[], Decided]:
    """Provide a function that takes a decision, which can no longer be undone."""
    return lambda: take_decision(database, relay_settings.review)


@pytest.fixture
def stream(relay_settings: Settings, broker: redis.Redis) -> DecisionStream:
    """Return the emptied decision stream."""
    return DecisionStream.connect(relay_settings, client=broker)


def _published(broker: redis.Redis) -> list[str]:
    entries: Any = broker.xrange("decisions")
    return [read_decision(fields[b"event"]).id for _, fields in entries]


def test_each_decision_is_published_once_and_then_confirmed(
    relay: RelayProcess,
    broker: redis.Redis,
    database: Database,
    *,
    decided: Callable[[], Decided],
    wait_until: Callable[..., None],
) -> None:
    """Two relays share the work; a decision that the broker lost soon afterwards is added again."""
    decisions = [decided() for _ in range(20)]
    other = RelayProcess(relay.environment, relay.log.with_name("other.log"))
    relay.start()
    other.start()
    try:
        wait_until(lambda: len(_published(broker)) == 20, "twenty decisions on the stream")
        # What a power failure takes from a broker that writes to its disk every second.
        (lost, *_), *_ = broker.xrevrange("decisions", count=1)  # type: ignore[misc,union-attr]
        lost_id = _published(broker)[-1]
        broker.xdel("decisions", lost)
        broker.delete(f"{{decisions}}:published:{lost_id}")
        with database.transaction() as tx:
            tx.execute("UPDATE outbox SET due_at = now() WHERE published_at IS NOT NULL")
        wait_until(lambda: _unconfirmed(database) == 0, "every decision is confirmed")
    finally:
        other.kill()
    assert sorted(_published(broker)) == sorted(str(decision.id) for decision in decisions)


def _unconfirmed(database: Database) -> int:
    with database.transaction() as tx:
        (row,) = tx.execute("SELECT count(*) AS events FROM outbox WHERE confirmed_at IS NULL")
    return int(row["events"])


def test_an_event_whose_publication_was_not_recorded_is_not_published_twice(
    stream: DecisionStream, broker: redis.Redis, database: Database, decided: Callable[[], Decided]
) -> None:
    """A relay that dies between stream and database is followed by one that publishes again."""
    decision = decided()
    for _ in range(2):
        with database.transaction() as tx:
            events = outbox.due(tx, limit=10)
        assert stream.publish([(event.event_id, event.event) for event in events]) == 1
    assert _published(broker) == [str(decision.id)]


def test_a_full_stream_takes_no_more_decisions_and_loses_none(
    relay_settings: Settings, broker: redis.Redis
) -> None:
    """They wait in the outbox."""
    stream = DecisionStream(broker, stream="decisions", max_length=2, mark_ttl_seconds=60)
    events = [(f"event-{number}", "{}") for number in range(4)]
    assert stream.publish(events) == 2
    assert stream.publish(events) == 2
    broker.xtrim(relay_settings.decision_stream, maxlen=0)
    assert stream.publish(events) == 4
    assert broker.xlen("decisions") == 2


@pytest.fixture
def served(relay: RelayProcess) -> Iterator[Callable[[str], tuple[int, str]]]:
    """Provide a function that asks a running relay for a path."""
    (port,) = free_ports(1)
    relay.environment |= {"DNF_HTTP_PORT": str(port), "DNF_HTTP_HOST": HOST}
    relay.start()
    relay.wait_for_event("relay_ready")

    def ask(path: str) -> tuple[int, str]:
        with urlopen(f"http://{HOST}:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()

    yield ask
    relay.stop()


def test_a_relay_tells_what_waits(
    served: Callable[[str], tuple[int, str]],
    verdicts: VerdictStream,
    wait_until: Callable[..., None],
) -> None:
    """Its probes answer, and its metrics have the queue's age and the outbox."""
    assert served("/livez")[0] == served("/readyz")[0] == served("/startupz")[0] == 200
    verdicts.publish(verdict_event(), message_id="m")
    wait_until(lambda: "dnf_reviews_waiting 1.0" in served("/metrics")[1], "a review in the metrics")
    page = served("/metrics")[1]
    assert 'dnf_relay_reviews_total{origin="uncertain",result="opened"} 1.0' in page
    assert "dnf_outbox_waiting 0.0" in page
    assert "dnf_relay_up 1.0" in page


def test_a_relay_ends_at_sigterm(relay: RelayProcess) -> None:
    relay.start()
    relay.wait_for_event("relay_ready")
    assert relay.stop() == 0
    assert relay.events("relay_stopped")


def test_the_decision_stream_is_read_in_groups_and_trimmed_when_all_have_read(
    stream: DecisionStream,
    broker: redis.Redis,
    database: Database,
    *,
    decided: Callable[[], Decided],
    wait_until: Callable[..., None],
) -> None:
    """As the verdict stream is."""
    decisions = [decided(), decided()]
    for event in decisions:
        with database.transaction() as tx:
            (due,) = [each for each in outbox.due(tx, limit=10) if each.event_id == str(event.id)]
        stream.publish([(due.event_id, due.event)])
        # Events of one millisecond are trimmed together.
        time.sleep(0.002)
    published_at = broker.time()[0]  # type: ignore[index]
    limits = {"min_age_seconds": 3600, "retention_seconds": 7200, "spare_length": 2}
    with closing(stream.consume("platform", "one", block_seconds=0.1)) as events:
        for decision in decisions:
            stream.trim(**limits)
            assert broker.xlen("decisions") == 2
            read = next(events)
            assert read is not None
            assert read.envelope.id == str(decision.id)
            stream.acknowledge("platform", read)
    # Events of the present second stay, and the newest acknowledged one.
    wait_until(lambda: broker.time()[0] > published_at, "the next second")  # type: ignore[index]
    stream.trim(**limits)
    assert _published(broker) == [str(decisions[-1].id)]
