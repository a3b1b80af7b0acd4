"""The review page: one item at a time, claimed, looked at and decided."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from worker.contract.messages import DecisionBasis, DecisionOutcome, VerdictEvent, ViewScore
from worker.database.database import Transaction
from worker.reviews import decisions, listing, queue
from worker.reviews.details import Review, review
from worker.web.api.bodies import BoundedRoute
from worker.web.heat_map import Cell, cells
from worker.web.identity import Person
from worker.web.pages.frame import frame
from worker.web.pages.rendering import html
from worker.web.pictures import PictureError, strongest_view
from worker.web.problems import ProblemError
from worker.web.site import CurrentPerson, CurrentSite, Site, require, within_rate

router = APIRouter(include_in_schema=False, route_class=BoundedRoute)

Reader = Annotated[Person, Depends(require("moderator", "senior", "auditor", "admin"))]
Decider = Annotated[Person, Depends(require("moderator"))]


@dataclass(frozen=True)
class ShownReview:
    """A review as a page shows it to one person."""

    id: UUID
    event: VerdictEvent
    purpose: queue.Purpose
    revision: int
    #: Whether score and feature are withheld, because this person may still decide it blindly.
    hidden: bool
    history: Sequence[listing.PastDecision]
    #: None where it is not an appeal.
    appeal_reason: str | None
    escalation_note: str | None
    #: Why it cannot be decided, in words; None if it can.
    fault: str | None
    #: Of a claim; absent where the page only shows it.
    lease: UUID | None = None
    remaining_seconds: float = 0.0
    lease_seconds: float = 0.0
    #: Where it only shows it: its state in words, and whether this person may claim it.
    state_words: str = ""
    claimable: bool = False

    @property
    def has_views(self) -> bool:
        """Whether the event says where the model looked."""
        return self.event.data.strongest_view is not None and bool(self.event.data.views)

    @property
    def strongest(self) -> ViewScore:
        """The view most like *generated*, or the middle of the picture."""
        return strongest_view(self.event)

    @property
    def heat(self) -> list[Cell]:
        """The heat map."""
        return cells(self.event.data.views)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ClaimRequest(_Body):
    """Which item is asked for; the next one without a name."""

    review: UUID | None = None


class Lease(_Body):
    """The claim in whose name something is done."""

    lease: UUID


class DecisionRequest(Lease):
    """A decision."""

    outcome: DecisionOutcome
    basis: DecisionBasis = "opinion"
    note: str = Field(default="", max_length=decisions.MAX_NOTE_CHARACTERS)


class EscalationRequest(Lease):
    """An escalation, with words for the senior."""

    note: str = Field(default="", max_length=decisions.MAX_NOTE_CHARACTERS)


class ClaimReply(BaseModel):
    """The item that was claimed, or why there is none."""

    status: Literal["claimed", "nothing"]
    review: UUID | None = None
    why: Literal["empty", "all_claimed", "none_for_you"] | None = None


class LeaseReply(BaseModel):
    """How long a claim lasts."""

    remaining_seconds: float


class DecisionReply(BaseModel):
    """A decision that was taken."""

    decision: UUID
    revision: int
    undo_until: datetime


@router.get("/")
def review_page(site: CurrentSite, person: CurrentPerson) -> Response:
    """Show the item that the person holds, or what a claim would find."""
    with site.database.transaction() as tx:
        page = frame(tx, site, person, "/")
        if not person.may("moderator"):
            return html("rest.html.j2", page=page, why="reader")
        claimed = queue.current(tx, page.moderator)
        if claimed is None:
            return html("rest.html.j2", page=page, why=queue.outlook(tx, page.moderator))
        shown = review(tx, claimed.review_id)
        history = _history(tx, shown, person)
    return html(
        "review.html.j2",
        page=page,
        review=ShownReview(
            id=claimed.review_id,
            event=claimed.event,
            purpose=claimed.purpose,
            revision=claimed.revision,
            hidden=claimed.blind,
            history=history,
            appeal_reason=claimed.appeal_reason,
            escalation_note=shown.escalation_note if shown.needs_senior else None,
            fault=fault(site, claimed.event),
            lease=claimed.lease,
            remaining_seconds=claimed.remaining_seconds,
            lease_seconds=page.lease_seconds,
        ),
    )


@router.get("/reviews/{review_id}")
def item_page(review_id: UUID, site: CurrentSite, person: Reader) -> Response:
    """Show an item to read."""
    with site.database.transaction() as tx:
        page = frame(tx, site, person, "/items")
        shown = review(tx, review_id)
        hidden = withheld(shown, person)
        history = _history(tx, shown, person)
    return html(
        "item.html.j2",
        page=page,
        review=ShownReview(
            id=review_id,
            event=shown.event,
            purpose=shown.purpose,
            revision=shown.revision,
            hidden=hidden,
            history=history,
            appeal_reason=shown.appeal_reason,
            escalation_note=shown.escalation_note,
            fault=fault(site, shown.event),
            state_words=state_words(shown),
            claimable=shown.state == "waiting" and not shown.claimed_by and person.may("moderator"),
        ),
    )


@router.post("/reviews/claim")
def claim(request: ClaimRequest, site: CurrentSite, person: Decider) -> ClaimReply:
    """Claim the next item, or the one that is named."""
    within_rate(site.claims, person.subject)
    with site.database.transaction() as tx:
        moderator = site.moderators.of(tx, person)
        found = queue.claim(tx, site.settings.review, moderator, review_id=request.review)
    if isinstance(found, queue.Nothing):
        return ClaimReply(status="nothing", why=found.reason)
    return ClaimReply(status="claimed", review=found.review_id)


@router.post("/reviews/{review_id}/renew")
def renew(review_id: UUID, request: Lease, site: CurrentSite, person: Decider) -> LeaseReply:
    """Let a claim run anew."""
    with site.database.transaction() as tx:
        moderator = site.moderators.of(tx, person)
        renewed = queue.renew(tx, site.settings.review, review_id, request.lease, moderator)
    return LeaseReply(remaining_seconds=renewed.remaining_seconds)


@router.post("/reviews/{review_id}/decide")
def decide(review_id: UUID, request: DecisionRequest, site: CurrentSite, person: Decider) -> DecisionReply:
    """Decide a claimed item, if its object is still what was judged."""
    with site.database.transaction() as tx:
        event = review(tx, review_id).event
    try:
        site.pictures.verify(event)
    except PictureError as error:
        raise ProblemError(409, error.reason, str(error)) from error
    with site.database.transaction() as tx:
        decided = decisions.decide(
            tx,
            site.settings.review,
            review_id,
            request.lease,
            site.moderators.of(tx, person),
            outcome=request.outcome,
            basis=request.basis,
            note=request.note,
        )
    return DecisionReply(decision=decided.id, revision=decided.revision, undo_until=decided.publish_at)


@router.post("/reviews/{review_id}/skip")
def skip(review_id: UUID, request: Lease, site: CurrentSite, person: Decider) -> dict[str, str]:
    """Give an item back, to others only."""
    with site.database.transaction() as tx:
        queue.skip(tx, review_id, request.lease, site.moderators.of(tx, person))
    return {"status": "skipped"}


@router.post("/reviews/{review_id}/release")
def release(review_id: UUID, request: Lease, site: CurrentSite, person: Decider) -> dict[str, str]:
    """Give an item back."""
    with site.database.transaction() as tx:
        queue.release(tx, review_id, request.lease, site.moderators.of(tx, person))
    return {"status": "released"}


@router.post("/reviews/{review_id}/escalate")
def escalate(
    review_id: UUID, request: EscalationRequest, site: CurrentSite, person: Decider
) -> dict[str, str]:
    """Leave an item to a senior."""
    with site.database.transaction() as tx:
        moderator = site.moderators.of(tx, person)
        decisions.escalate(tx, review_id, request.lease, moderator, note=request.note)
    return {"status": "escalated"}


@router.post("/reviews/{review_id}/close")
def close(review_id: UUID, request: Lease, site: CurrentSite, person: Decider) -> dict[str, str]:
    """End an item whose picture changed or is gone, and only such a one."""
    with site.database.transaction() as tx:
        event = review(tx, review_id).event
    try:
        site.pictures.verify(event)
    except PictureError as error:
        reason = error.reason
    else:
        raise ProblemError(409, "picture_intact", "The picture is as it was judged: decide the item.")
    with site.database.transaction() as tx:
        decisions.close(tx, review_id, request.lease, site.moderators.of(tx, person), reason=reason)
    return {"status": "closed"}


@router.post("/decisions/{decision_id}/undo")
def undo(decision_id: UUID, site: CurrentSite, person: Decider) -> ClaimReply:
    """Take a decision back before it is published; its item is claimed again."""
    with site.database.transaction() as tx:
        moderator = site.moderators.of(tx, person)
        claimed = decisions.undo(tx, site.settings.review, decision_id, moderator)
    return ClaimReply(status="claimed", review=claimed.review_id)


def withheld(shown: Review, person: Person) -> bool:
    """Return whether a person may not see score and feature yet: whoever may decide it blindly."""
    return shown.blind and person.may("moderator")


def fault(site: Site, event: VerdictEvent) -> str | None:
    """Return why an event's picture cannot be shown, in words."""
    try:
        site.pictures.verify(event)
    except PictureError as error:
        return str(error)
    return None


def state_words(shown: Review | listing.Item) -> str:
    """Return the state of a review in words."""
    if shown.state == "closed":
        return f"Closed: {(shown.closed_reason or '').replace('_', ' ')}"
    if shown.state == "decided":
        return "Decided"
    if shown.claimed_by:
        return "Being reviewed"
    return "Waiting for a senior" if shown.needs_senior else "Waiting"


def _history(tx: Transaction, shown: Review, person: Person) -> list[listing.PastDecision]:
    """Return what a person may know of earlier decisions: nothing where the next one must be independent."""
    independent = shown.state == "waiting" and shown.purpose == "second_opinion" and person.may("moderator")
    if independent or withheld(shown, person):
        return []
    others = listing.same_bytes(tx, shown.event.data.picture.sha256, other_than=shown.id)
    return [*reversed(listing.decisions(tx, shown.id)), *others]
