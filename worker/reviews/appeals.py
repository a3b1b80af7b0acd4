"""Appeals: they reopen a check for somebody who has not decided it."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from worker.contract.messages import VerdictEvent, read_event
from worker.database.database import Transaction, only
from worker.reviews import audit
from worker.reviews.errors import ReviewError
from worker.reviews.intake import open_review, storable
from worker.settings import ReviewSettings

MAX_REASON_CHARACTERS = 2000


@dataclass(frozen=True)
class Appeal:
    """One appeal."""

    id: UUID
    check_id: str
    review_id: UUID
    opened_at: datetime
    #: None while nobody has decided it.
    decided_at: datetime | None
    #: Whether this request opened it; otherwise it was open, or known by its key.
    new: bool


def appeal(
    tx: Transaction,
    settings: ReviewSettings,
    check_id: str,
    *,
    idempotency_key: str | None = None,
    reason: str = "",
    by: str = "",
) -> Appeal:
    """Reopen a check, first of all in the queue; one that is appealed already has that appeal.

    `by` is whoever sent it, for the audit. Raises `ReviewError`: `not_found` for a check of which the
    database has no event, `not_judged` for a rejected upload.
    """
    # Two requests for one check come after each other.
    tx.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 1))", [check_id])
    known = tx.execute(
        "SELECT * FROM appeals WHERE check_id = %s"
        " AND (decided_at IS NULL OR (idempotency_key IS NOT NULL AND idempotency_key = %s))"
        " ORDER BY idempotency_key IS NOT DISTINCT FROM %s DESC LIMIT 1",
        [check_id, idempotency_key, idempotency_key],
    ).fetchone()
    if known:
        return Appeal(
            known["id"], check_id, known["review_id"], known["opened_at"], known["decided_at"], new=False
        )
    review_id = _review_of(tx, settings, check_id)
    tx.execute(
        "UPDATE reviews SET state = 'waiting', purpose = 'appeal',"
        " needs_senior = needs_senior AND state = 'waiting', available_at = now(),"
        " closed_reason = NULL, claimed_by = NULL, lease = NULL, claimed_at = NULL, claimed_until = NULL"
        " WHERE id = %s",
        [review_id],
    )
    row = only(
        tx.execute(
            "INSERT INTO appeals (check_id, review_id, idempotency_key, reason, appellant)"
            " VALUES (%s, %s, %s, %s, %s) RETURNING id, opened_at",
            [check_id, review_id, idempotency_key, storable(reason[:MAX_REASON_CHARACTERS]), storable(by)],
        )
    )
    audit.record(
        tx,
        by or "unknown",
        "check_appealed",
        str(review_id),
        {"appeal": str(row["id"]), "check_id": check_id},
    )
    return Appeal(row["id"], check_id, review_id, row["opened_at"], None, new=True)


def _review_of(tx: Transaction, settings: ReviewSettings, check_id: str) -> UUID:
    row = tx.execute("SELECT id FROM reviews WHERE check_id = %s FOR UPDATE", [check_id]).fetchone()
    if row:
        found: UUID = row["id"]
        return found
    check = tx.execute("SELECT event FROM checks WHERE check_id = %s", [check_id]).fetchone()
    if check is None:
        raise ReviewError("not_found", "No event of this check is known.")
    event = read_event(check["event"])
    if not isinstance(event, VerdictEvent):
        raise ReviewError("not_judged")
    opened = open_review(tx, settings, event, check["event"], origin="appeal", probability=None)
    if opened is None:
        raise ReviewError("already_decided", "The check came to review at this moment: appeal again.")
    return opened
