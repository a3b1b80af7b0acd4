"""Verdicts, moderators and reviews."""

from collections.abc import Callable
from typing import Protocol
from uuid import UUID, uuid4

import pytest

from tests.verdicts import verdict_event
from worker.contract.messages import ReviewOrigin, VerdictEvent
from worker.database.database import Database
from worker.reviews.intake import open_review
from worker.reviews.moderators import Moderator, enrol
from worker.reviews.queue import Claimed, claim
from worker.settings import ReviewSettings, Settings

#: Returns a new moderator.
NewModerator = Callable[..., Moderator]


class OpenReview(Protocol):
    """Opens reviews."""

    def __call__(
        self,
        event: VerdictEvent | None = None,
        *,
        origin: ReviewOrigin = "uncertain",
        probability: float = 1.0,
    ) -> UUID:
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

    def opened(
        event: VerdictEvent | None = None,
        *,
        origin: ReviewOrigin = "uncertain",
        probability: float | None = 1.0,
    ) -> UUID:
        event = event or verdict_event()
        with database.transaction() as tx:
            review_id = open_review(
                tx, review_settings, event, event.model_dump_json(), origin=origin, probability=probability
            )
        assert review_id is not None
        return review_id

    return opened


#: Two moderators.
Staff = tuple[Moderator, Moderator]


class Claim(Protocol):
    """Claims reviews."""

    def __call__(self, who: Moderator, *, settings: ReviewSettings | None = None) -> Claimed:
        """Return the review that comes first for a moderator."""


@pytest.fixture
def staff(moderator: NewModerator) -> Staff:
    """Return two moderators."""
    return moderator("first"), moderator("second")


@pytest.fixture
def claimed(database: Database, review_settings: ReviewSettings) -> Claim:
    """Provide a function that claims a review."""

    def claimed(who: Moderator, *, settings: ReviewSettings | None = None) -> Claimed:
        with database.transaction() as tx:
            found = claim(tx, settings or review_settings, who)
        assert isinstance(found, Claimed), found
        return found

    return claimed
