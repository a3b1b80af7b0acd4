"""The queue of reviews: one at a time for each moderator, under a lease."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID, uuid4

from psycopg import sql

from worker.contract.messages import ReviewOrigin, VerdictEvent
from worker.database.database import Transaction, only
from worker.reviews import audit
from worker.reviews.errors import ReviewError
from worker.reviews.intake import event_of
from worker.reviews.moderators import Moderator
from worker.settings import ReviewSettings

Purpose = Literal["uncertain", "audit", "appeal", "second_opinion", "escalation"]


@dataclass(frozen=True)
class Claimed:
    """A review that its moderator holds until `until`; every later call names `review_id` and `lease`."""

    review_id: UUID
    lease: UUID
    until: datetime
    #: Until the lease ends, by the server's clock.
    remaining_seconds: float
    purpose: Purpose
    origin: ReviewOrigin
    #: Whether score and feature stay hidden until the decision.
    blind: bool
    #: Of the decision in force; 0 before the first.
    revision: int
    event: VerdictEvent
    #: The newest appeal's words; None unless the purpose is an appeal.
    appeal_reason: str | None


@dataclass(frozen=True)
class Nothing:
    """No review for this moderator.

    `empty`: none waits; `all_claimed`: others hold all that wait; `none_for_you`: those left were skipped,
    decided or escalated by this moderator, wait for a senior, or for the end of another one's undo.
    """

    reason: Literal["empty", "all_claimed", "none_for_you"]


_OFFERED = sql.SQL("""
state = 'waiting' AND available_at <= now() AND (claimed_until IS NULL OR claimed_until <= now())
AND (NOT needs_senior OR %(senior)s) AND NOT EXISTS (
  SELECT 1 FROM review_exclusions AS excluded
  WHERE excluded.review_id = reviews.id AND excluded.moderator_id = %(moderator)s)
""")
_HELD = sql.SQL("claimed_by = %(moderator)s AND claimed_until > now()")
# What comes first; each has an index.
_FIRST = tuple(
    sql.SQL(
        "SELECT id FROM reviews WHERE {condition} AND {offered} ORDER BY {order} LIMIT 1"
        " FOR UPDATE SKIP LOCKED"
    ).format(condition=sql.SQL(condition), offered=_OFFERED, order=sql.SQL(order))
    for condition, order in (
        ("purpose = 'appeal'", "opened_at"),
        ("due_at <= now()", "due_at"),
        ("true", "distance, opened_at"),
    )
)
_ANY = sql.SQL("SELECT 1 FROM reviews WHERE {offered} LIMIT 1").format(offered=_OFFERED)
_OF_MODERATOR = sql.SQL("SELECT id FROM reviews WHERE {held}").format(held=_HELD)
_NAMED = sql.SQL(
    "SELECT id, claimed_until > now() AS held, {offered} AS offered FROM reviews"
    " WHERE id = %(review)s FOR UPDATE SKIP LOCKED"
).format(offered=_OFFERED)


def claim(
    tx: Transaction, settings: ReviewSettings, moderator: Moderator, *, review_id: UUID | None = None
) -> Claimed | Nothing:
    """Claim the review that comes first, or the one that is named, for the time of a lease.

    Whoever holds one has it again, under the same lease. To claim another one by name releases it.
    Raises `ReviewError`: `not_found`, `already_decided`, `claimed`, `not_allowed`.
    """
    # One claim at a time: two tabs of one moderator get the same review.
    tx.execute("SELECT 1 FROM moderators WHERE id = %s FOR NO KEY UPDATE", [moderator.id])
    values = {"moderator": moderator.id, "senior": moderator.senior, "review": review_id}
    held = tx.execute(_OF_MODERATOR + sql.SQL(" FOR UPDATE"), values).fetchone()
    if held and review_id in {None, held["id"]}:
        return _extended(tx, settings, held["id"])
    if held:
        _released(tx, held["id"])
    found = _named(tx, values) if review_id else _first(tx, values)
    if found is None:
        return _nothing(tx, values)
    tx.execute(
        "UPDATE reviews SET claimed_by = %s, lease = %s, claimed_at = now(),"
        " claimed_until = now() + %s * interval '1 second' WHERE id = %s",
        [moderator.id, uuid4(), settings.lease_seconds, found],
    )
    claimed = _claimed(tx, found)
    audit.record(tx, str(moderator.id), "review_claimed", str(found))
    return claimed


def current(tx: Transaction, moderator: Moderator) -> Claimed | None:
    """Return the review that a moderator holds."""
    row = tx.execute(_OF_MODERATOR, {"moderator": moderator.id}).fetchone()
    return None if row is None else _claimed(tx, row["id"])


def outlook(
    tx: Transaction, moderator: Moderator
) -> Literal["ready", "empty", "all_claimed", "none_for_you"]:
    """Return whether a claim would find a review now, and otherwise why it would not."""
    values = {"moderator": moderator.id, "senior": moderator.senior}
    if tx.execute(_ANY, values).fetchone():
        return "ready"
    return _nothing(tx, values).reason


def renew(
    tx: Transaction, settings: ReviewSettings, review_id: UUID, lease: UUID, moderator: Moderator
) -> Claimed:
    """Let the lease run anew. Raises `ReviewError` where it has ended."""
    held_review(tx, review_id, lease, moderator)
    return _extended(tx, settings, review_id)


def release(tx: Transaction, review_id: UUID, lease: UUID, moderator: Moderator) -> None:
    """Give a review back; it may be offered to the same moderator again. Raises `ReviewError`."""
    held_review(tx, review_id, lease, moderator)
    _released(tx, review_id)
    audit.record(tx, str(moderator.id), "review_released", str(review_id))


def skip(tx: Transaction, review_id: UUID, lease: UUID, moderator: Moderator) -> None:
    """Give a review back, to others only. Raises `ReviewError`."""
    held_review(tx, review_id, lease, moderator)
    _released(tx, review_id)
    exclude(tx, review_id, moderator, "skipped")
    audit.record(tx, str(moderator.id), "review_skipped", str(review_id))


def held_review(tx: Transaction, review_id: UUID, lease: UUID, moderator: Moderator) -> dict[str, Any]:
    """Return a review's row, locked, that this moderator holds under this lease. Raises `ReviewError`."""
    row = tx.execute(
        "SELECT *, claimed_until > now() AS held, extract(epoch FROM now() - claimed_at)::float8 AS seconds"
        " FROM reviews WHERE id = %s FOR UPDATE",
        [review_id],
    ).fetchone()
    if row is None:
        raise ReviewError("not_found")
    if row["state"] != "waiting":
        raise ReviewError("already_decided")
    if row["lease"] == lease and row["held"] and row["claimed_by"] == moderator.id:
        return row
    # Whoever never had this lease claims to have another one's.
    raise ReviewError("not_yours" if row["lease"] == lease and row["held"] else "lease_expired")


def exclude(
    tx: Transaction, review_id: UUID, moderator: Moderator, why: Literal["skipped", "decided", "escalated"]
) -> None:
    """Never offer a review to this moderator again."""
    tx.execute(
        "INSERT INTO review_exclusions (review_id, moderator_id, why) VALUES (%s, %s, %s)"
        " ON CONFLICT (review_id, moderator_id) DO UPDATE SET why = excluded.why",
        [review_id, moderator.id, why],
    )


def _first(tx: Transaction, values: dict[str, Any]) -> UUID | None:
    for query in _FIRST:
        row = tx.execute(query, values).fetchone()
        if row:
            found: UUID = row["id"]
            return found
    return None


def _named(tx: Transaction, values: dict[str, Any]) -> UUID:
    known = tx.execute("SELECT state FROM reviews WHERE id = %(review)s", values).fetchone()
    if known is None:
        raise ReviewError("not_found")
    if known["state"] != "waiting":
        raise ReviewError("already_decided")
    row = tx.execute(_NAMED, values).fetchone()
    if row is None or row["held"]:
        raise ReviewError("claimed")
    if not row["offered"]:
        raise ReviewError(
            "not_allowed", "This review is not for you: you have seen it, or it needs a senior."
        )
    found: UUID = row["id"]
    return found


def _nothing(tx: Transaction, values: dict[str, Any]) -> Nothing:
    row = tx.execute(
        "SELECT count(*) AS waiting, count(*) FILTER (WHERE claimed_until > now()) AS claimed"
        " FROM reviews WHERE state = 'waiting'",
        values,
    ).fetchone()
    if row is None or not row["waiting"]:
        return Nothing("empty")
    # A review that another transaction claims at this moment is not counted as claimed yet.
    free = tx.execute(_ANY, values).fetchone()
    return Nothing("all_claimed" if free or row["claimed"] == row["waiting"] else "none_for_you")


def _released(tx: Transaction, review_id: UUID) -> None:
    tx.execute(
        "UPDATE reviews SET claimed_by = NULL, lease = NULL, claimed_at = NULL, claimed_until = NULL"
        " WHERE id = %s",
        [review_id],
    )


def _extended(tx: Transaction, settings: ReviewSettings, review_id: UUID) -> Claimed:
    tx.execute(
        "UPDATE reviews SET claimed_until = now() + %s * interval '1 second' WHERE id = %s",
        [settings.lease_seconds, review_id],
    )
    return _claimed(tx, review_id)


def _claimed(tx: Transaction, review_id: UUID) -> Claimed:
    row = only(
        tx.execute(
            "SELECT reviews.*, extract(epoch FROM claimed_until - now())::float8 AS remaining,"
            " (SELECT reason FROM appeals WHERE review_id = reviews.id"
            "  ORDER BY opened_at DESC LIMIT 1) AS appeal"
            " FROM reviews WHERE id = %s",
            [review_id],
        )
    )
    return Claimed(
        review_id=review_id,
        lease=row["lease"],
        until=row["claimed_until"],
        remaining_seconds=row["remaining"],
        purpose=row["purpose"],
        origin=row["origin"],
        blind=is_blind(row),
        revision=row["revision"],
        event=event_of(row["event"]),
        appeal_reason=row["appeal"] if row["purpose"] == "appeal" else None,
    )


def is_blind(review: dict[str, Any]) -> bool:
    """Return whether score and feature stay hidden from whoever decides this review now."""
    return bool(review["origin"] == "audit" and review["purpose"] != "appeal")
