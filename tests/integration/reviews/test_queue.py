"""The queue of reviews: claims, leases, skips and their order."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Literal
from uuid import uuid4

import pytest

from tests.integration.reviews.conftest import Claim, NewModerator, OpenReview, Staff
from tests.verdicts import verdict_event
from worker.database.database import Database
from worker.reviews.decisions import decide
from worker.reviews.errors import ReviewError
from worker.reviews.queue import Claimed, Nothing, claim, release, renew, skip
from worker.settings import ReviewSettings


def _expire(database: Database) -> None:
    """End every lease, as time does."""
    with database.transaction() as tx:
        tx.execute("UPDATE reviews SET claimed_until = now() - interval '1 second' WHERE lease IS NOT NULL")


def test_many_moderators_at_once_never_hold_the_same_review(
    database: Database, review_settings: ReviewSettings, moderator: NewModerator, opened: OpenReview
) -> None:
    """Twelve threads drain sixty reviews; each is decided once, by whoever held it."""
    reviews = {opened() for _ in range(60)}
    people = [moderator() for _ in range(12)]
    start = threading.Barrier(len(people))

    def drain(number: int) -> list[Claimed]:
        start.wait()
        done = []
        while True:
            with database.transaction() as tx:
                found = claim(tx, review_settings, people[number])
            if isinstance(found, Nothing):
                if found.reason == "empty":
                    return done
                continue
            with database.transaction() as tx:
                decide(tx, review_settings, found.review_id, found.lease, people[number], outcome="real")
            done.append(found)

    with ThreadPoolExecutor(len(people)) as threads:
        held = [each for part in threads.map(drain, range(len(people))) for each in part]
    assert Counter(each.review_id for each in held) == Counter(reviews)
    assert len({each.lease for each in held}) == 60


def test_two_tabs_of_one_moderator_hold_the_same_review(
    database: Database, review_settings: ReviewSettings, moderator: NewModerator, opened: OpenReview
) -> None:
    """A second claim returns the first one's review and lease, also at the same moment."""
    for _ in range(4):
        opened()
    who = moderator()
    start = threading.Barrier(4)

    def claimed(_: int) -> Claimed | Nothing:
        start.wait()
        with database.transaction() as tx:
            return claim(tx, review_settings, who)

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(claimed, range(4)))
    assert len({each.lease for each in found if isinstance(each, Claimed)}) == 1
    assert all(isinstance(each, Claimed) for each in found)


def test_an_expired_lease_goes_to_somebody_else_and_refuses_the_late_decision(
    database: Database, review_settings: ReviewSettings, *, staff: Staff, claimed: Claim, opened: OpenReview
) -> None:
    """A claims, the lease ends, B decides; A is told why in words, before and after B's decision."""
    opened()
    first, second = staff
    late = claimed(first)
    _expire(database)
    for also_claimed in (False, True):
        if also_claimed:
            held = claimed(second)
        with pytest.raises(ReviewError, match="claim has ended") as refused, database.transaction() as tx:
            decide(tx, review_settings, late.review_id, late.lease, first, outcome="real")
        assert refused.value.reason == "lease_expired"
    with database.transaction() as tx:
        decide(tx, review_settings, held.review_id, held.lease, second, outcome="generated")
    with pytest.raises(ReviewError) as refused, database.transaction() as tx:
        decide(tx, review_settings, late.review_id, late.lease, first, outcome="real")
    assert refused.value.reason == "already_decided"


def test_a_renewed_lease_runs_anew_and_another_ones_lease_opens_nothing(
    database: Database, review_settings: ReviewSettings, *, staff: Staff, claimed: Claim, opened: OpenReview
) -> None:
    opened()
    first, second = staff
    held = claimed(first, settings=replace(review_settings, lease_seconds=20))
    assert 19 < held.remaining_seconds <= 20
    with database.transaction() as tx:
        renewed = renew(tx, replace(review_settings, lease_seconds=60), held.review_id, held.lease, first)
    assert renewed.lease == held.lease
    assert 59 < renewed.remaining_seconds <= 60
    for lease, reason in ((held.lease, "not_yours"), (uuid4(), "lease_expired")):
        with pytest.raises(ReviewError) as refused, database.transaction() as tx:
            decide(tx, review_settings, held.review_id, lease, second, outcome="real")
        assert refused.value.reason == reason


def test_a_skipped_review_comes_back_to_others_only(
    database: Database, review_settings: ReviewSettings, *, staff: Staff, claimed: Claim, opened: OpenReview
) -> None:
    opened()
    first, second = staff
    held = claimed(first)
    with database.transaction() as tx:
        skip(tx, held.review_id, held.lease, first)
    with database.transaction() as tx:
        assert claim(tx, review_settings, first) == Nothing("none_for_you")
    assert claimed(second).review_id == held.review_id


def test_a_released_review_may_come_back_to_the_same_moderator(
    database: Database, *, staff: Staff, claimed: Claim, opened: OpenReview
) -> None:
    opened()
    held = claimed(staff[0])
    with database.transaction() as tx:
        release(tx, held.review_id, held.lease, staff[0])
    again = claimed(staff[0])
    assert again.review_id == held.review_id
    assert again.lease != held.lease


def test_no_review_has_three_reasons(
    database: Database, review_settings: ReviewSettings, *, staff: Staff, claimed: Claim, opened: OpenReview
) -> None:
    """Locked is not shown as empty, and a senior's review not as locked."""
    first, second = staff

    def reason() -> Literal["empty", "all_claimed", "none_for_you"]:
        with database.transaction() as tx:
            found = claim(tx, review_settings, second)
        assert isinstance(found, Nothing)
        return found.reason

    assert reason() == "empty"
    review = opened()
    claimed(first)
    assert reason() == "all_claimed"
    _expire(database)
    with database.transaction() as tx:
        tx.execute("UPDATE reviews SET needs_senior = true WHERE id = %s", [review])
    assert reason() == "none_for_you"


def test_appeals_come_first_then_what_is_overdue_then_what_is_nearest_to_a_threshold(
    database: Database, *, staff: Staff, claimed: Claim, opened: OpenReview
) -> None:
    """The thresholds of the tests are 0.3 and 0.8."""
    far, near = opened(verdict_event(score=0.55)), opened(verdict_event(score=0.79))
    overdue, appealed = opened(verdict_event(score=0.6)), opened(verdict_event(score=0.5))
    with database.transaction() as tx:
        tx.execute("UPDATE reviews SET due_at = now() - interval '1 second' WHERE id = %s", [overdue])
        tx.execute("UPDATE reviews SET purpose = 'appeal' WHERE id = %s", [appealed])
    order = []
    for _ in range(4):
        held = claimed(staff[0])
        order.append(held.review_id)
        with database.transaction() as tx:
            skip(tx, held.review_id, held.lease, staff[0])
    assert order == [appealed, overdue, near, far]


def test_a_named_review_is_claimed_in_place_of_the_one_that_was_held(
    database: Database, review_settings: ReviewSettings, *, staff: Staff, claimed: Claim, opened: OpenReview
) -> None:
    """What another one holds is refused; nobody is left holding two."""
    first, second = staff
    reviews = [opened(), opened()]
    held = claimed(first)
    other = next(each for each in reviews if each != held.review_id)
    with database.transaction() as tx:
        assert isinstance(claim(tx, review_settings, first, review_id=other), Claimed)
    assert claimed(second).review_id == held.review_id
    for review, reason in ((held.review_id, "claimed"), (uuid4(), "not_found")):
        with pytest.raises(ReviewError) as refused, database.transaction() as tx:
            claim(tx, review_settings, first, review_id=review)
        assert refused.value.reason == reason
