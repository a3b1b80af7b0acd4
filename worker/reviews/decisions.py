"""Decisions: taken under a lease, undone for a while, then published."""

import random
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from worker.contract.messages import Decision, DecisionBasis, DecisionEvent, DecisionOutcome
from worker.database.database import Transaction, only
from worker.reviews import audit
from worker.reviews.errors import ReviewError
from worker.reviews.intake import event_of, storable
from worker.reviews.moderators import Moderator
from worker.reviews.queue import Claimed, claim, exclude, held_review, is_blind
from worker.settings import ReviewSettings

MAX_NOTE_CHARACTERS = 2000


@dataclass(frozen=True)
class Decided:
    """A decision that was taken; `id` is also that of its event."""

    id: UUID
    review_id: UUID
    revision: int
    outcome: DecisionOutcome
    decided_at: datetime
    #: Until then it can be undone; then it is published.
    publish_at: datetime


def decide(
    tx: Transaction,
    settings: ReviewSettings,
    review_id: UUID,
    lease: UUID,
    moderator: Moderator,
    *,
    outcome: DecisionOutcome,
    basis: DecisionBasis = "opinion",
    note: str = "",
) -> Decided:
    """Decide a claimed review; the same request again returns the same decision.

    A second opinion that differs from the first goes to a senior; it has no event of its own.
    Raises `ReviewError`.
    """
    if again := _decided_before(tx, review_id, lease, moderator, outcome):
        return again
    review = held_review(tx, review_id, lease, moderator)
    second = review["purpose"] == "second_opinion"
    revision = review["revision"] + (not second)
    appeal_id = _close_appeal(tx, review) if review["purpose"] == "appeal" else None
    row = only(
        tx.execute(
            "INSERT INTO decisions (review_id, revision, moderator_id, outcome, basis, note, purpose,"
            " needs_senior, second_opinion, blind, seconds, lease, publish_at, supersedes, appeal_id)"
            " VALUES (%(review)s, %(revision)s, %(moderator)s, %(outcome)s, %(basis)s, %(note)s, %(purpose)s,"
            " %(needs_senior)s, %(second)s, %(blind)s, %(seconds)s, %(lease)s,"
            " now() + %(undo)s * interval '1 second', %(supersedes)s, %(appeal)s) RETURNING *",
            {
                "review": review_id,
                "revision": revision,
                "moderator": moderator.id,
                "outcome": outcome,
                "basis": basis,
                "note": storable(note[:MAX_NOTE_CHARACTERS]),
                "purpose": review["purpose"],
                "needs_senior": review["needs_senior"],
                "second": second,
                "blind": is_blind(review),
                "seconds": review["seconds"],
                "lease": lease,
                "undo": settings.undo_seconds,
                "supersedes": None if second else review["decision_id"],
                "appeal": appeal_id,
            },
        )
    )
    if second:
        _settle_second_opinion(tx, review, row)
    else:
        _settle(tx, settings, review, row)
        tx.execute(
            "INSERT INTO outbox (event_id, event, due_at) VALUES (%s, %s, %s)",
            [str(row["id"]), decision_event(settings, review, row).model_dump_json(), row["publish_at"]],
        )
    exclude(tx, review_id, moderator, "decided")
    audit.record(
        tx,
        str(moderator.id),
        "review_decided",
        str(review_id),
        {
            "decision": str(row["id"]),
            "check_id": review["check_id"],
            "purpose": review["purpose"],
            "revision": revision,
            "outcome": outcome,
            "basis": basis,
        },
    )
    return _result(row)


def undo(tx: Transaction, settings: ReviewSettings, decision_id: UUID, moderator: Moderator) -> Claimed:
    """Take a decision back before it is published; its moderator holds the review again, under a new lease.

    Raises `ReviewError`: `not_found`, `not_yours`, `too_late_to_undo`.
    """
    known = tx.execute("SELECT review_id FROM decisions WHERE id = %s", [decision_id]).fetchone()
    if known is None:
        raise ReviewError("not_found")
    # In the order in which `decide` locks them: moderator, review.
    tx.execute("SELECT 1 FROM moderators WHERE id = %s FOR NO KEY UPDATE", [moderator.id])
    review = only(tx.execute("SELECT * FROM reviews WHERE id = %s FOR UPDATE", [known["review_id"]]))
    decision = only(
        tx.execute(
            "SELECT *, publish_at > clock_timestamp() AS early FROM decisions WHERE id = %s FOR UPDATE",
            [decision_id],
        )
    )
    if decision["moderator_id"] != moderator.id:
        raise ReviewError("not_yours")
    if not decision["early"] or decision["undone_at"] or _went_on(review, decision):
        raise ReviewError("too_late_to_undo")
    if not decision["second_opinion"]:
        unpublished = tx.execute(
            "DELETE FROM outbox WHERE event_id = %s AND published_at IS NULL RETURNING id", [str(decision_id)]
        ).fetchone()
        if unpublished is None:
            raise ReviewError("too_late_to_undo")
    tx.execute("UPDATE decisions SET undone_at = now() WHERE id = %s", [decision_id])
    if decision["appeal_id"]:
        tx.execute("UPDATE appeals SET decided_at = NULL WHERE id = %s", [decision["appeal_id"]])
    tx.execute(
        "DELETE FROM review_exclusions WHERE review_id = %s AND moderator_id = %s",
        [review["id"], moderator.id],
    )
    before = review if decision["second_opinion"] else _in_force(tx, decision["supersedes"])
    tx.execute(
        "UPDATE reviews SET state = 'waiting', purpose = %(purpose)s, needs_senior = %(needs_senior)s,"
        " revision = %(revision)s, decision_id = %(decision)s, outcome = %(outcome)s,"
        " decided_at = %(decided_at)s, available_at = now() WHERE id = %(review)s",
        {
            "purpose": decision["purpose"],
            "needs_senior": decision["needs_senior"],
            "revision": before["revision"],
            "decision": before["decision_id"],
            "outcome": before["outcome"],
            "decided_at": before["decided_at"],
            "review": review["id"],
        },
    )
    audit.record(tx, str(moderator.id), "decision_undone", str(review["id"]), {"decision": str(decision_id)})
    # A senior's reservation does not keep whoever decided under it from deciding again.
    holder = Moderator(moderator.id, moderator.name, senior=True)
    claimed = claim(tx, settings, holder, review_id=review["id"])
    if not isinstance(claimed, Claimed):
        raise ReviewError("claimed")
    return claimed


def escalate(tx: Transaction, review_id: UUID, lease: UUID, moderator: Moderator, *, note: str = "") -> None:
    """Leave a claimed review to a senior, who is somebody else. Raises `ReviewError`."""
    review = held_review(tx, review_id, lease, moderator)
    purpose = "appeal" if review["purpose"] == "appeal" else "escalation"
    tx.execute(
        "UPDATE reviews SET needs_senior = true, purpose = %s, claimed_by = NULL, lease = NULL,"
        " claimed_at = NULL, claimed_until = NULL WHERE id = %s",
        [purpose, review_id],
    )
    exclude(tx, review_id, moderator, "escalated")
    audit.record(
        tx,
        str(moderator.id),
        "review_escalated",
        str(review_id),
        {"note": storable(note[:MAX_NOTE_CHARACTERS])},
    )


def close(tx: Transaction, review_id: UUID, lease: UUID, moderator: Moderator, *, reason: str) -> None:
    """End a claimed review that cannot be decided, because its picture changed or is gone.

    `reason` is a word for lists and the audit, `picture_changed` for example. Raises `ReviewError`.
    """
    review = held_review(tx, review_id, lease, moderator)
    if review["purpose"] == "appeal":
        _close_appeal(tx, review)
    tx.execute(
        "UPDATE reviews SET state = 'closed', closed_reason = %s, claimed_by = NULL, lease = NULL,"
        " claimed_at = NULL, claimed_until = NULL WHERE id = %s",
        [reason, review_id],
    )
    audit.record(tx, str(moderator.id), "review_closed", str(review_id), {"reason": reason})


def _decided_before(
    tx: Transaction, review_id: UUID, lease: UUID, moderator: Moderator, outcome: str
) -> Decided | None:
    row = tx.execute(
        "SELECT * FROM decisions WHERE lease = %s AND review_id = %s AND moderator_id = %s"
        " AND outcome = %s AND undone_at IS NULL",
        [lease, review_id, moderator.id, outcome],
    ).fetchone()
    return _result(row) if row else None


def _result(row: dict[str, Any]) -> Decided:
    return Decided(
        row["id"], row["review_id"], row["revision"], row["outcome"], row["decided_at"], row["publish_at"]
    )


def _settle(
    tx: Transaction, settings: ReviewSettings, review: dict[str, Any], decision: dict[str, Any]
) -> None:
    """Put a decision in force; a share of first decisions waits for a second opinion."""
    again = review["purpose"] in {"uncertain", "audit"} and random.random() < settings.double_share
    tx.execute(
        "UPDATE reviews SET state = %(state)s, purpose = %(purpose)s, needs_senior = false,"
        " revision = %(revision)s, decision_id = %(decision)s, outcome = %(outcome)s,"
        " decided_at = %(decided_at)s, available_at = %(available_at)s, closed_reason = NULL,"
        " claimed_by = NULL, lease = NULL, claimed_at = NULL, claimed_until = NULL WHERE id = %(review)s",
        {
            "state": "waiting" if again else "decided",
            "purpose": "second_opinion" if again else review["purpose"],
            "revision": decision["revision"],
            "decision": decision["id"],
            "outcome": decision["outcome"],
            "decided_at": decision["decided_at"],
            "available_at": decision["publish_at"],
            "review": review["id"],
        },
    )


def _settle_second_opinion(tx: Transaction, review: dict[str, Any], decision: dict[str, Any]) -> None:
    """End the review, or leave it to a senior where the two differ."""
    differs = decision["outcome"] != review["outcome"]
    tx.execute(
        "UPDATE reviews SET state = %(state)s, purpose = %(purpose)s, needs_senior = %(differs)s,"
        " available_at = %(available_at)s,"
        " claimed_by = NULL, lease = NULL, claimed_at = NULL, claimed_until = NULL WHERE id = %(review)s",
        {
            "state": "waiting" if differs else "decided",
            "purpose": "escalation" if differs else "second_opinion",
            "differs": differs,
            "available_at": decision["publish_at"],
            "review": review["id"],
        },
    )


def _close_appeal(tx: Transaction, review: dict[str, Any]) -> UUID | None:
    row = tx.execute(
        "UPDATE appeals SET decided_at = now() WHERE review_id = %s AND decided_at IS NULL RETURNING id",
        [review["id"]],
    ).fetchone()
    return row["id"] if row else None


def _went_on(review: dict[str, Any], decision: dict[str, Any]) -> object:
    """Return whether something else happened to a review since a decision."""
    if decision["second_opinion"]:
        expected = {"second_opinion", "escalation"}
        return review["purpose"] not in expected or review["revision"] != decision["revision"]
    appealed = review["state"] == "waiting" and review["purpose"] == "appeal"
    return appealed or review["state"] == "closed" or review["decision_id"] != decision["id"]


def _in_force(tx: Transaction, decision_id: UUID | None) -> dict[str, Any]:
    """Return what a review says of the decision that is in force."""
    row = (
        tx.execute(
            "SELECT revision, id AS decision_id, outcome, decided_at FROM decisions WHERE id = %s",
            [decision_id],
        ).fetchone()
        if decision_id
        else None
    )
    return row or {"revision": 0, "decision_id": None, "outcome": None, "decided_at": None}


def decision_event(
    settings: ReviewSettings, review: dict[str, Any], decision: dict[str, Any]
) -> DecisionEvent:
    """Return the event of a decision, from its row and its review's."""
    verdict = event_of(review["event"])
    return DecisionEvent(
        id=str(decision["id"]),
        source=settings.source,
        subject=verdict.subject,
        time=decision["decided_at"],
        data=Decision(
            check_id=review["check_id"],
            policy=review["policy"],
            outcome=decision["outcome"],
            basis=decision["basis"],
            revision=decision["revision"],
            supersedes=str(decision["supersedes"]) if decision["supersedes"] else None,
            appeal=str(decision["appeal_id"]) if decision["appeal_id"] else None,
            moderator=str(decision["moderator_id"]),
            blind=decision["blind"],
            seconds=decision["seconds"],
            origin=review["origin"],
            sampling_probability=review["sampling_probability"],
            verdict=review["verdict"],
            score=review["score"],
            model=verdict.data.model,
            verdict_event=review["event_id"],
            sha256=review["sha256"],
            metadata=verdict.data.metadata,
        ),
    )
