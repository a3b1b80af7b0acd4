"""One review with its event, and the decision that its moderator can still undo."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from worker.contract.messages import DecisionOutcome, ReviewOrigin, VerdictEvent
from worker.database.database import Transaction
from worker.reviews.errors import ReviewError
from worker.reviews.intake import event_of
from worker.reviews.moderators import Moderator
from worker.reviews.queue import Purpose, is_blind


@dataclass(frozen=True)
class Review:
    """A review, whether it waits or not."""

    id: UUID
    event: VerdictEvent
    purpose: Purpose
    origin: ReviewOrigin
    state: Literal["waiting", "decided", "closed"]
    closed_reason: str | None
    needs_senior: bool
    #: Whether score and feature stay hidden from whoever may still decide it.
    blind: bool
    #: Of the decision in force; 0 before the first.
    revision: int
    outcome: DecisionOutcome | None
    opened_at: datetime
    due_at: datetime
    overdue: bool
    #: Whoever holds it now.
    claimed_by: UUID | None
    #: The newest appeal's words; None if it was never appealed.
    appeal_reason: str | None
    #: What was written when it was escalated last.
    escalation_note: str | None


@dataclass(frozen=True)
class Undoable:
    """A moderator's last decision, while it can be undone."""

    id: UUID
    outcome: DecisionOutcome
    remaining_seconds: float


def review(tx: Transaction, review_id: UUID) -> Review:
    """Return a review. Raises `ReviewError`: `not_found`."""
    row = tx.execute(
        "SELECT reviews.*, state = 'waiting' AND due_at <= now() AS overdue,"
        " CASE WHEN claimed_until > now() THEN claimed_by END AS holder,"
        " (SELECT reason FROM appeals WHERE review_id = reviews.id"
        "  ORDER BY opened_at DESC LIMIT 1) AS appeal,"
        " (SELECT detail->>'note' FROM audit WHERE subject = reviews.id::text AND action = 'review_escalated'"
        "  ORDER BY audit.id DESC LIMIT 1) AS escalation"
        " FROM reviews WHERE id = %s",
        [review_id],
    ).fetchone()
    if row is None:
        raise ReviewError("not_found")
    return Review(
        id=row["id"],
        event=event_of(row["event"]),
        purpose=row["purpose"],
        origin=row["origin"],
        state=row["state"],
        closed_reason=row["closed_reason"],
        needs_senior=row["needs_senior"],
        blind=is_blind(row) and row["state"] == "waiting",
        revision=row["revision"],
        outcome=row["outcome"],
        opened_at=row["opened_at"],
        due_at=row["due_at"],
        overdue=row["overdue"],
        claimed_by=row["holder"],
        appeal_reason=row["appeal"],
        escalation_note=row["escalation"],
    )


def undoable(tx: Transaction, moderator: Moderator) -> Undoable | None:
    """Return the last decision of a moderator, if it can still be undone."""
    row = tx.execute(
        "SELECT id, outcome, extract(epoch FROM publish_at - now())::float8 AS remaining FROM decisions"
        " WHERE moderator_id = %s AND undone_at IS NULL AND publish_at > now()"
        " ORDER BY decided_at DESC LIMIT 1",
        [moderator.id],
    ).fetchone()
    return None if row is None else Undoable(row["id"], row["outcome"], row["remaining"])
