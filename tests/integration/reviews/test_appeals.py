"""Appeals: one for one check, for somebody else, first in the queue."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from tests.integration.reviews.conftest import Claim, OpenReview, Staff
from tests.verdicts import rejection_event, verdict_event
from worker.contract.messages import read_decision
from worker.database.database import Database
from worker.reviews.appeals import Appeal, appeal
from worker.reviews.decisions import decide, undo
from worker.reviews.errors import ReviewError
from worker.reviews.intake import sampling_key, store
from worker.reviews.queue import Nothing, claim
from worker.settings import ReviewSettings


def _stored(database: Database, settings: ReviewSettings, *, score: float) -> str:
    """Return the check id of a verdict that the relay has seen, and chose for no audit."""
    settings = replace(settings, audit_shares={})
    event = verdict_event(score=score)
    with database.transaction() as tx:
        store(tx, settings, event, event.model_dump_json(), key=sampling_key(tx))
    return event.data.check_id


def test_an_appeal_against_an_automatic_verdict_comes_to_review_first_of_all(
    database: Database, review_settings: ReviewSettings, *, staff: Staff, claimed: Claim, opened: OpenReview
) -> None:
    opened(verdict_event(score=0.8 - 1e-9))
    check_id = _stored(database, review_settings, score=0.99)
    with database.transaction() as tx:
        filed = appeal(tx, review_settings, check_id, reason="I took it myself", by="token platform")
    assert filed.new
    held = claimed(staff[0])
    assert (held.event.data.check_id, held.purpose) == (check_id, "appeal")
    assert (held.appeal_reason, held.blind) == ("I took it myself", False)
    with database.transaction() as tx:
        decide(tx, review_settings, held.review_id, held.lease, staff[0], outcome="real")
        (event,) = [read_decision(row["event"]) for row in tx.execute("SELECT event FROM outbox")]
    assert (event.data.appeal, event.data.origin) == (str(filed.id), "appeal")
    assert event.data.sampling_probability is None


def test_an_appeal_posted_twice_is_one_also_at_the_same_moment(
    database: Database, review_settings: ReviewSettings
) -> None:
    """With the same key, with another key and without one, as long as it is open; the key lasts longer."""
    check_id = _stored(database, review_settings, score=0.9)
    keys = ["one", "one", None, "two"]
    start = threading.Barrier(len(keys))

    def filed(key: str | None) -> Appeal:
        start.wait()
        with database.transaction() as tx:
            return appeal(tx, review_settings, check_id, idempotency_key=key)

    with ThreadPoolExecutor(len(keys)) as threads:
        found = list(threads.map(filed, keys))
    assert len({each.id for each in found}) == 1
    assert [each.new for each in found].count(True) == 1


def test_an_appeal_is_never_offered_to_whoever_decided_and_supersedes_the_decision(
    database: Database, review_settings: ReviewSettings, *, staff: Staff, claimed: Claim, opened: OpenReview
) -> None:
    """Revision 2 supersedes 1; the key of a decided appeal still names that appeal."""
    event = verdict_event()
    review = opened(event)
    decider, other = staff
    held = claimed(decider)
    with database.transaction() as tx:
        first = decide(tx, review_settings, review, held.lease, decider, outcome="generated")
    with database.transaction() as tx:
        filed = appeal(tx, review_settings, event.data.check_id, idempotency_key="k")
    with pytest.raises(ReviewError) as refused, database.transaction() as tx:
        undo(tx, review_settings, first.id, decider)
    assert refused.value.reason == "too_late_to_undo"
    with database.transaction() as tx:
        assert claim(tx, review_settings, decider) == Nothing("none_for_you")
    held = claimed(other)
    with database.transaction() as tx:
        second = decide(tx, review_settings, review, held.lease, other, outcome="real")
        events = [read_decision(row["event"]) for row in tx.execute("SELECT event FROM outbox ORDER BY id")]
    assert second.revision == 2
    assert [event.data.supersedes for event in events] == [None, str(first.id)]
    assert [event.data.appeal for event in events] == [None, str(filed.id)]
    with database.transaction() as tx:
        again = appeal(tx, review_settings, event.data.check_id, idempotency_key="k")
        assert (again.id, again.new, again.decided_at is None) == (filed.id, False, False)
        assert appeal(tx, review_settings, event.data.check_id, idempotency_key="later").new


def test_undoing_the_decision_of_an_appeal_opens_the_appeal_again(
    database: Database, review_settings: ReviewSettings, *, staff: Staff, claimed: Claim
) -> None:
    check_id = _stored(database, review_settings, score=0.9)
    with database.transaction() as tx:
        filed = appeal(tx, review_settings, check_id, idempotency_key="k")
    held = claimed(staff[0])
    with database.transaction() as tx:
        decided = decide(tx, review_settings, held.review_id, held.lease, staff[0], outcome="real")
    with database.transaction() as tx:
        assert undo(tx, review_settings, decided.id, staff[0]).purpose == "appeal"
        again = appeal(tx, review_settings, check_id, idempotency_key="k")
    assert (again.id, again.decided_at) == (filed.id, None)


def test_an_appeal_revokes_the_claim_of_whoever_has_not_read_it(
    database: Database, review_settings: ReviewSettings, *, staff: Staff, claimed: Claim, opened: OpenReview
) -> None:
    event = verdict_event()
    opened(event)
    held = claimed(staff[0])
    with database.transaction() as tx:
        appeal(tx, review_settings, event.data.check_id, reason="mine")
    with pytest.raises(ReviewError) as refused, database.transaction() as tx:
        decide(tx, review_settings, held.review_id, held.lease, staff[0], outcome="real")
    assert refused.value.reason == "lease_expired"
    assert claimed(staff[0]).appeal_reason == "mine"


def test_what_has_no_verdict_cannot_be_appealed(database: Database, review_settings: ReviewSettings) -> None:
    rejected = rejection_event()
    with database.transaction() as tx:
        store(tx, review_settings, rejected, rejected.model_dump_json(), key=b"key")
    for check_id, reason in ((rejected.data.check_id, "not_judged"), ("unknown", "not_found")):
        with pytest.raises(ReviewError) as refused, database.transaction() as tx:
            appeal(tx, review_settings, check_id)
        assert refused.value.reason == reason
