"""One review as people see it, what was decided before on the same bytes, and how much waits."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from worker.contract.messages import DecisionBasis, DecisionOutcome, ReviewOrigin, VerdictEvent
from worker.database.database import Transaction
from worker.reviews.errors import ReviewError
from worker.reviews.intake import event_of
from worker.reviews.moderators import Moderator
from worker.reviews.queue import Purpose, is_blind

# Of the decisions on one picture's bytes, the newest.
_EARLIER = 20


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
    #: Whether somebody holds it now.
    claimed: bool
    #: The newest appeal's words; None if it was never appealed.
    appeal_reason: str | None
    #: What was written when it was escalated last.
    escalation_note: str | None


@dataclass(frozen=True)
class EarlierDecision:
    """A decision on the same bytes; its moderator is not named."""

    review_id: UUID
    check_id: str
    revision: int
    outcome: DecisionOutcome
    basis: DecisionBasis
    note: str
    second_opinion: bool
    decided_at: datetime


@dataclass(frozen=True)
class Counts:
    """What waits, by what is urgent; held reviews count too."""

    waiting: int
    appeals: int
    overdue: int


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
        " coalesce(claimed_until > now(), false) AS held,"
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
        claimed=row["held"],
        appeal_reason=row["appeal"],
        escalation_note=row["escalation"],
    )


def earlier_decisions(tx: Transaction, sha256: str) -> list[EarlierDecision]:
    """Return the decisions on these bytes that were not undone, newest first."""
    rows = tx.execute(
        "SELECT decisions.*, reviews.check_id FROM decisions JOIN reviews ON reviews.id = review_id"
        " WHERE sha256 = %s AND undone_at IS NULL ORDER BY decisions.decided_at DESC LIMIT %s",
        [sha256, _EARLIER],
    ).fetchall()
    return [
        EarlierDecision(
            review_id=row["review_id"],
            check_id=row["check_id"],
            revision=row["revision"],
            outcome=row["outcome"],
            basis=row["basis"],
            note=row["note"],
            second_opinion=row["second_opinion"],
            decided_at=row["decided_at"],
        )
        for row in rows
    ]


def counts(tx: Transaction) -> Counts:
    """Return what waits."""
    row = tx.execute(
        "SELECT count(*) AS waiting, count(*) FILTER (WHERE purpose = 'appeal') AS appeals,"
        " count(*) FILTER (WHERE due_at <= now()) AS overdue FROM reviews WHERE state = 'waiting'"
    ).fetchone()
    assert row is not None  # noqa: S101 - an aggregate returns its row
    return Counts(row["waiting"], row["appeals"], row["overdue"])


def undoable(tx: Transaction, moderator: Moderator) -> Undoable | None:
    """Return the last decision of a moderator, if it can still be undone."""
    row = tx.execute(
        "SELECT id, outcome, extract(epoch FROM publish_at - now())::float8 AS remaining FROM decisions"
        " WHERE moderator_id = %s AND undone_at IS NULL AND publish_at > now()"
        " ORDER BY decided_at DESC LIMIT 1",
        [moderator.id],
    ).fetchone()
    return None if row is None else Undoable(row["id"], row["outcome"], row["remaining"])
