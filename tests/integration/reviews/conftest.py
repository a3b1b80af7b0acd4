"""Verdicts, moderators and reviews."""

from collections.abc import Callable
from typing import Protocol
from uuid import UUID, uuid4

import pytest

from tests.verdicts import verdict_event
from worker.contract.messages import VerdictEvent
from worker.database.database import Database
from worker.reviews.intake import open_review
from worker.reviews.moderators import Moderator, enrol
from worker.settings import ReviewSettings, Settings

#: Returns a new moderator.
NewModerator = Callable[..., Moderator]


class OpenReview(Protocol):
    """Opens reviews."""

    def __call__(self, event: VerdictEvent | None = None, *, origin: str = "uncertain") -> UUID:
        """Return the id of the review of an event, by default of a new uncertain one."""


@pytest.fixture
def review_settings() -> ReviewSettings:
    """Return settings without second opinions."""
    return Settings(review_double_share=0).review


@pytest.fixture
def moderator(database: Database) -> NewModerator:
    """Provide a function that enrols a person."""

    def enrolled(name: str = "moderator", *, senior: bool = False) -> Moderator:
        with database.transaction() as tx:
            return enrol(tx, f"{name}-{uuid4()}", name, senior=senior)

    return enrolled


@pytest.fixture
def opened(database: Database, review_settings: ReviewSettings) -> OpenReview:
    """Provide a function that opens a review."""

    def opened(event: VerdictEvent | None = None, *, origin: str = "uncertain") -> UUID:
        event = event or verdict_event()
        with database.transaction() as tx:
            review_id = open_review(
                tx, review_settings, event, event.model_dump_json(), origin=origin, probability=1.0
            )
        assert review_id is not None
        return review_id

    return opened
