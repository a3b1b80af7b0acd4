"""Verdicts on the stream become reviews in the database."""

import random
from collections.abc import Callable
from typing import Any

import redis

from tests.relay_process import RelayProcess
from tests.verdicts import rejection_event, verdict_event
from worker.broker.verdict_stream import VerdictStream
from worker.contract.messages import RejectionEvent, VerdictEvent
from worker.database.database import Database
from worker.relay.intake import GROUP
from worker.reviews.intake import sampling_key
from worker.reviews.sampling import choose
from worker.settings import Settings


def _published(verdicts: VerdictStream, events: list[VerdictEvent | RejectionEvent]) -> None:
    for event in events:
        assert verdicts.publish(event, message_id="m")


def _caught_up(broker: redis.Redis) -> bool:
    groups: Any = broker.xinfo_groups("verdicts") if broker.exists("verdicts") else []
    return any(
        group["name"] == GROUP.encode() and not group["lag"] and not group["pending"] for group in groups
    )


def _origins(database: Database) -> dict[str, str]:
    with database.transaction() as tx:
        return {row["check_id"]: row["origin"] for row in tx.execute("SELECT check_id, origin FROM reviews")}


def test_every_review_appears_that_was_due_while_no_relay_ran(
    relay: RelayProcess,
    verdicts: VerdictStream,
    broker: redis.Redis,
    database: Database,
    *,
    relay_settings: Settings,
    wait_until: Callable[..., None],
) -> None:
    """6,000 verdicts of all kinds pass; two relays open a review for each that was to have one."""
    chance = random.Random(1)
    events = [verdict_event(f"check-{number}", score=chance.random()) for number in range(6000)]
    _published(verdicts, [*events])
    with database.transaction() as tx:
        key = sampling_key(tx)
    shares = relay_settings.review.audit_shares
    expected = {event.data.check_id: choose(event, shares, key) for event in events}
    other = RelayProcess(relay.environment, relay.log.with_name("other.log"))
    relay.start()
    other.start()
    try:
        wait_until(lambda: _caught_up(broker), "the relays have acknowledged everything", seconds=60)
    finally:
        other.kill()
    assert _origins(database) == {name: sample.origin for name, sample in expected.items() if sample}
    assert {sample.origin for sample in expected.values() if sample} == {"uncertain", "audit"}
    with database.transaction() as tx:
        (row,) = tx.execute("SELECT count(*) AS checks FROM checks")
    assert row["checks"] == 6000
    assert not relay.events("relay_interrupted") + other.events("relay_interrupted")


def test_an_event_that_the_database_refuses_is_named_and_the_others_are_stored(
    relay: RelayProcess,
    verdicts: VerdictStream,
    broker: redis.Redis,
    database: Database,
    *,
    wait_until: Callable[..., None],
) -> None:
    """A check id of a later version, say, that has a character which PostgreSQL has not."""
    raw = verdict_event("good-1").model_dump_json()
    for name in ("good-1", "bad\\u0000", "good-2"):
        broker.xadd("verdicts", {"event": raw.replace("good-1", name)})
    verdicts.publish(rejection_event("rejected"), message_id="m")
    relay.start()
    wait_until(lambda: _caught_up(broker), "the relay has acknowledged everything")
    with database.transaction() as tx:
        checks = {row["check_id"] for row in tx.execute("SELECT check_id FROM checks")}
    assert checks == {"good-1", "good-2", "rejected"}
    (unstorable,) = relay.events("event_unstorable")
    assert unstorable["level"] == "error"
