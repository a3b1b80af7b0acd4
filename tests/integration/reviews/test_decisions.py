"""Decisions: taken once, undone in time, escalated, doubled, and what is published of them."""

from dataclasses import replace
from uuid import UUID

import pytest

from tests.integration.reviews.conftest import Claim, NewModerator, OpenReview, Staff
from tests.verdicts import verdict_event
from worker.contract.messages import DecisionEvent, DecisionOutcome, read_decision
from worker.database.database import Database
from worker.reviews.decisions import Decided, close, decide, escalate, undo
from worker.reviews.errors import ReviewError
from worker.reviews.listing import Item, decisions, find
from worker.reviews.moderators import Moderator
from worker.reviews.queue import Claimed, Nothing, claim
from worker.settings import ReviewSettings


def _decide(
    database: Database,
    settings: ReviewSettings,
    held: Claimed,
    who: Moderator,
    outcome: DecisionOutcome = "real",
) -> Decided:
    with database.transaction() as tx:
        return decide(tx, settings, held.review_id, held.lease, who, outcome=outcome, basis="source_found")


def _item(database: Database, review: UUID) -> Item:
    with database.transaction() as tx:
        found = find(tx, review_id=review)
    assert found is not None
    return found


def _outbox(database: Database) -> list[DecisionEvent]:
    with database.transaction() as tx:
        return [read_decision(row["event"]) for row in tx.execute("SELECT event FROM outbox ORDER BY id")]


def _let_undo_end(database: Database) -> None:
    with database.transaction() as tx:
        tx.execute("UPDATE decisions SET publish_at = now() - interval '1 second'")
        tx.execute("UPDATE reviews SET available_at = now() - interval '1 second'")


def test_a_decision_its_audit_and_its_event_are_committed_together(
    database: Database, review_settings: ReviewSettings, *, staff: Staff, claimed: Claim, opened: OpenReview
) -> None:
    """What fails after the decision takes all three back."""
    review = opened()
    held = claimed(staff[0])

    def decide_and_fail() -> None:
        with database.transaction() as tx:
            decide(tx, review_settings, held.review_id, held.lease, staff[0], outcome="real")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        decide_and_fail()
    assert _item(database, review).outcome is None
    assert _outbox(database) == []
    _decide(database, review_settings, held, staff[0])
    assert _item(database, review).outcome == "real"
    assert len(_outbox(database)) == 1
    with database.transaction() as tx:
        actions = [row["action"] for row in tx.execute("SELECT action FROM audit ORDER BY number")]
    assert actions == ["review_claimed", "review_decided"]


def test_the_event_of_a_decision_says_what_was_decided_about_which_verdict(
    database: Database, review_settings: ReviewSettings, *, staff: Staff, claimed: Claim, opened: OpenReview
) -> None:
    """It names the moderator by a pseudonym, and has what a refit weighs it by."""
    verdict = verdict_event(score=0.81, metadata={"uploader": "17"})
    opened(verdict, origin="audit", probability=0.05)
    held = claimed(staff[0])
    assert held.blind
    decided = _decide(database, review_settings, held, staff[0])
    (event,) = _outbox(database)
    assert event.id == str(decided.id)
    assert event.subject == verdict.subject
    data = event.data
    assert (data.check_id, data.verdict_event) == (verdict.data.check_id, verdict.id)
    assert (data.outcome, data.basis, data.revision, data.supersedes) == ("real", "source_found", 1, None)
    assert (data.origin, data.sampling_probability, data.blind) == ("audit", 0.05, True)
    assert (data.verdict, data.score, data.model) == ("generated", 0.81, verdict.data.model)
    assert data.moderator == str(staff[0].id)
    assert data.metadata == {"uploader": "17"}
    assert staff[0].name not in event.model_dump_json()


def test_the_same_request_again_returns_the_same_decision(
    database: Database, review_settings: ReviewSettings, *, staff: Staff, claimed: Claim, opened: OpenReview
) -> None:
    """An answer that was lost on its way to the browser makes no second decision."""
    opened()
    held = claimed(staff[0])
    first = _decide(database, review_settings, held, staff[0])
    assert _decide(database, review_settings, held, staff[0]) == first
    assert len(_outbox(database)) == 1


def test_a_decision_is_undone_until_it_is_published_and_never_afterwards(
    database: Database, review_settings: ReviewSettings, *, staff: Staff, claimed: Claim, opened: OpenReview
) -> None:
    """Whoever undoes it holds the review again; nothing of it is published."""
    review = opened()
    first = _decide(database, review_settings, claimed(staff[0]), staff[0])
    with pytest.raises(ReviewError) as refused, database.transaction() as tx:
        undo(tx, review_settings, first.id, staff[1])
    assert refused.value.reason == "not_yours"
    with database.transaction() as tx:
        held = undo(tx, review_settings, first.id, staff[0])
    assert held.review_id == review
    assert _outbox(database) == []
    assert _item(database, review).outcome is None
    again = _decide(database, review_settings, held, staff[0], "generated")
    assert (again.revision, _item(database, review).outcome) == (1, "generated")
    _let_undo_end(database)
    with pytest.raises(ReviewError) as refused, database.transaction() as tx:
        undo(tx, review_settings, again.id, staff[0])
    assert refused.value.reason == "too_late_to_undo"


def test_an_escalated_review_goes_to_another_person_who_is_senior(
    database: Database,
    review_settings: ReviewSettings,
    *,
    moderator: NewModerator,
    claimed: Claim,
    opened: OpenReview,
) -> None:
    review = opened()
    senior, other_senior, junior = moderator(senior=True), moderator(senior=True), moderator()
    held = claimed(senior)
    with database.transaction() as tx:
        escalate(tx, held.review_id, held.lease, senior, note="hands look odd")
    for who in (senior, junior):
        with database.transaction() as tx:
            assert claim(tx, review_settings, who) == Nothing("none_for_you")
    held = claimed(other_senior)
    assert (held.review_id, held.purpose) == (review, "escalation")


def test_a_second_opinion_goes_to_somebody_else_after_the_undo_and_has_no_event(
    database: Database, review_settings: ReviewSettings, *, staff: Staff, claimed: Claim, opened: OpenReview
) -> None:
    """Where both agree the review ends."""
    review = opened()
    settings = replace(review_settings, double_share=1.0)
    _decide(database, settings, claimed(staff[0]), staff[0])
    with database.transaction() as tx:
        assert claim(tx, settings, staff[1]) == Nothing("none_for_you")
    _let_undo_end(database)
    with database.transaction() as tx:
        assert claim(tx, settings, staff[0]) == Nothing("none_for_you")
    held = claimed(staff[1])
    assert (held.purpose, held.revision) == ("second_opinion", 1)
    _decide(database, settings, held, staff[1])
    assert _item(database, review).state == "decided"
    assert len(_outbox(database)) == 1


def test_second_opinions_that_differ_are_settled_by_a_senior(
    database: Database,
    review_settings: ReviewSettings,
    *,
    staff: Staff,
    moderator: NewModerator,
    claimed: Claim,
    opened: OpenReview,
) -> None:
    """The senior's decision is revision 2 and supersedes the first; undoing restores what was before."""
    review = opened()
    settings = replace(review_settings, double_share=1.0)
    first = _decide(database, settings, claimed(staff[0]), staff[0])
    _let_undo_end(database)
    second = _decide(database, settings, claimed(staff[1]), staff[1], "generated")
    with database.transaction() as tx:
        held = undo(tx, settings, second.id, staff[1])
    assert (held.purpose, held.review_id) == ("second_opinion", review)
    _decide(database, settings, held, staff[1], "edited")
    _let_undo_end(database)
    senior = moderator(senior=True)
    held = claimed(senior)
    assert held.purpose == "escalation"
    settled = _decide(database, settings, held, senior, "edited")
    with database.transaction() as tx:
        held = undo(tx, settings, settled.id, senior)
    assert (_item(database, review).outcome, _item(database, review).revision) == ("real", 1)
    settled = _decide(database, settings, held, senior, "edited")
    item = _item(database, review)
    assert (item.outcome, item.revision, item.state) == ("edited", 2, "decided")
    assert [event.data.supersedes for event in _outbox(database)] == [None, str(first.id)]
    with database.transaction() as tx:
        assert [each.undone_at is None for each in decisions(tx, review)] == [True, False, True, False, True]


def test_a_review_whose_picture_is_gone_is_closed_and_can_be_appealed(
    database: Database, review_settings: ReviewSettings, *, staff: Staff, claimed: Claim, opened: OpenReview
) -> None:
    review = opened()
    held = claimed(staff[0])
    with database.transaction() as tx:
        close(tx, held.review_id, held.lease, staff[0], reason="picture_changed")
    assert (_item(database, review).state, _item(database, review).closed_reason) == (
        "closed",
        "picture_changed",
    )
    with database.transaction() as tx:
        assert claim(tx, review_settings, staff[1]) == Nothing("empty")
    assert _outbox(database) == []
