"""Verdicts on the stream become reviews in the database."""

import random
from collections.abc import Callable
from typing import Any

import redis

from tests.relay_process import RelayProcess
from tests.verdicts import verdict_event
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
    """6,000 verdicts of all kinds pass; afterwards there is a review for each that was to have one."""
    chance = random.Random(1)
    events = [verdict_event(f"check-{number}", score=chance.random()) for number in range(6000)]
    _published(verdicts, [*events])
    with database.transaction() as tx:
        key = sampling_key(tx)
    shares = relay_settings.review.audit_shares
    expected = {event.data.check_id: choose(event, shares, key) for event in events}
    relay.start()
    wait_until(lambda: _caught_up(broker), "the relay has acknowledged everything", seconds=60)
    assert _origins(database) == {name: sample.origin for name, sample in expected.items() if sample}
    assert {sample.origin for sample in expected.values() if sample} == {"uncertain", "audit"}
    with database.transaction() as tx:
        (row,) = tx.execute("SELECT count(*) AS checks FROM checks")
    assert row["checks"] == 6000
