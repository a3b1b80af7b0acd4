"""The queue of reviews."""

from tests.integration.reviews.conftest import NewModerator, OpenReview
from worker.database.database import Database
from worker.reviews.decisions import decide, undo
from worker.reviews.moderators import Moderator
from worker.reviews.queue import Claimed, Nothing, claim
from worker.settings import ReviewSettings


def claimed(database: Database, settings: ReviewSettings, moderator: Moderator) -> Claimed:
    with database.transaction() as tx:
        found = claim(tx, settings, moderator)
    assert isinstance(found, Claimed), found
    return found


def test_a_claimed_review_is_decided_once(
    database: Database, review_settings: ReviewSettings, moderator: NewModerator, opened: OpenReview
) -> None:
    opened()
    who = moderator()
    held = claimed(database, review_settings, who)
    with database.transaction() as tx:
        decided = decide(tx, review_settings, held.review_id, held.lease, who, outcome="real")
    with database.transaction() as tx:
        assert decide(tx, review_settings, held.review_id, held.lease, who, outcome="real") == decided
    with database.transaction() as tx:
        assert claim(tx, review_settings, who) == Nothing("empty")
    with database.transaction() as tx:
        again = undo(tx, review_settings, decided.id, who)
    assert again.review_id == held.review_id
