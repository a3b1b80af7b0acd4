"""A decision without a browser, for tests of what follows it."""

from uuid import uuid4

from tests.verdicts import verdict_event
from worker.database.database import Database
from worker.reviews.decisions import Decided, decide
from worker.reviews.intake import open_review
from worker.reviews.moderators import enrol
from worker.reviews.queue import Claimed, claim
from worker.settings import ReviewSettings


def take_decision(database: Database, settings: ReviewSettings) -> Decided:
    """Open a review and decide it as a new moderator."""
    event = verdict_event()
    with database.transaction() as tx:
        open_review(tx, settings, event, event.model_dump_json(), origin="uncertain", probability=1.0)
        who = enrol(tx, f"person-{uuid4()}", "person")
        held = claim(tx, settings, who)
        assert isinstance(held, Claimed)
        return decide(tx, settings, held.review_id, held.lease, who, outcome="real")
