"""Events of the verdict stream become checks and reviews in the database."""

import math
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from worker.contract.messages import RejectionEvent, ReviewOrigin, Verdict, VerdictEvent, read_event
from worker.database.database import Transaction, only
from worker.reviews.sampling import choose
from worker.settings import ReviewSettings


@dataclass(frozen=True)
class Stored:
    """What became of an event."""

    #: Why people see it; None for an event that they do not see.
    origin: ReviewOrigin | None = None
    #: The review that was opened; None for a redelivered event, and beyond the daily limit.
    review_id: UUID | None = None
    #: Whether the daily limit held it back.
    capped: bool = False


def take_turn(tx: Transaction) -> None:
    """Wait until no other transaction stores events, and let others wait until this one ends.

    They count the same days' reviews, in any order: at once they would wait for each other.
    """
    tx.execute("SELECT pg_advisory_xact_lock(hashtext('dnf-moderation intake'))")


def sampling_key(tx: Transaction) -> bytes:
    """Return the key of this installation's draws."""
    row = only(tx.execute("SELECT sampling_key FROM installation"))
    return bytes(row["sampling_key"])


def store(
    tx: Transaction, settings: ReviewSettings, event: VerdictEvent | RejectionEvent, raw: str, *, key: bytes
) -> Stored:
    """Keep an event as its check's newest, and open a review if people are to see it; idempotent.

    `raw` is the event's text, `key` that of `sampling_key`.
    """
    data = event.data
    verdict = data if isinstance(data, Verdict) else None
    new = tx.execute(
        "INSERT INTO checks AS known"
        " (check_id, event_id, type, verdict, score, subject, sha256, occurred_at, event)"
        " VALUES (%(check_id)s, %(event_id)s, %(type)s, %(verdict)s, %(score)s, %(subject)s, %(sha256)s,"
        " %(occurred_at)s, %(event)s)"
        " ON CONFLICT (check_id) DO UPDATE SET event_id = excluded.event_id, type = excluded.type,"
        " verdict = excluded.verdict, score = excluded.score, subject = excluded.subject,"
        " sha256 = excluded.sha256, occurred_at = excluded.occurred_at, event = excluded.event"
        " WHERE known.event_id <> excluded.event_id AND known.occurred_at <= excluded.occurred_at"
        " RETURNING 1",
        {
            "check_id": data.check_id,
            "event_id": event.id,
            "type": event.type,
            "verdict": verdict and verdict.verdict,
            "score": verdict and verdict.score,
            "subject": storable(event.subject),
            "sha256": verdict and verdict.picture.sha256,
            "occurred_at": event.time,
            "event": raw,
        },
    ).fetchone()
    if new is None or not isinstance(event, VerdictEvent):
        return Stored()
    sample = choose(event, settings.audit_shares, key)
    if sample is None or _has_review(tx, data.check_id):
        return Stored()
    if not _within_limit(tx, sample.origin, settings.daily_limit):
        return Stored(sample.origin, capped=True)
    return Stored(
        sample.origin,
        open_review(tx, settings, event, raw, origin=sample.origin, probability=sample.probability),
    )


def open_review(
    tx: Transaction,
    settings: ReviewSettings,
    event: VerdictEvent,
    raw: str,
    *,
    origin: ReviewOrigin,
    probability: float | None,
) -> UUID | None:
    """Open the review of a verdict, drawn with a probability in 0..1; None when its check has one already."""
    data, thresholds = event.data, event.data.thresholds
    bucket, _, key = event.subject.removeprefix("s3://").partition("/")
    row = tx.execute(
        "INSERT INTO reviews (check_id, event_id, origin, purpose, sampling_probability, bucket, key, sha256,"
        " verdict, score, threshold_low, threshold_high, distance, model, policy, metadata, event,"
        " occurred_at, due_at)"
        " VALUES (%(check_id)s, %(event_id)s, %(origin)s, %(origin)s, %(probability)s, %(bucket)s, %(key)s,"
        " %(sha256)s, %(verdict)s, %(score)s, %(low)s, %(high)s, %(distance)s, %(model)s, %(policy)s,"
        " %(metadata)s, %(event)s, %(occurred_at)s, now() + %(due)s * interval '1 second')"
        " ON CONFLICT (check_id) DO NOTHING RETURNING id",
        {
            "check_id": data.check_id,
            "event_id": event.id,
            "origin": origin,
            "probability": probability,
            "bucket": storable(bucket),
            "key": storable(key),
            "sha256": data.picture.sha256,
            "verdict": data.verdict,
            "score": data.score,
            "low": thresholds.review_from,
            "high": thresholds.generated_from,
            "distance": min(
                abs(data.score - thresholds.review_from), abs(data.score - thresholds.generated_from)
            ),
            "model": storable(f"{data.model.name} {data.model.version}"),
            "policy": data.policy,
            "metadata": Jsonb(storable(data.metadata)),
            "event": raw,
            "occurred_at": event.time,
            "due": settings.due_seconds,
        },
    ).fetchone()
    return None if row is None else row["id"]


def event_of(text: str) -> VerdictEvent:
    """Return the verdict whose text the database keeps."""
    event = read_event(text)
    if not isinstance(event, VerdictEvent):
        raise TypeError("the event is not a verdict")
    return event


def _has_review(tx: Transaction, check_id: str) -> bool:
    """Return whether a check that has a new event was reviewed for an older one, or appealed."""
    return tx.execute("SELECT 1 FROM reviews WHERE check_id = %s", [check_id]).fetchone() is not None


def _within_limit(tx: Transaction, origin: str, limit: int) -> bool:
    """Count a verdict of today and return whether its review may be opened."""
    row = only(
        tx.execute(
            "INSERT INTO review_days AS today (day, origin, opened, capped)"
            " VALUES ((now() AT TIME ZONE 'UTC')::date, %(origin)s, least(1, %(limit)s),"
            " 1 - least(1, %(limit)s))"
            " ON CONFLICT (day, origin) DO UPDATE SET"
            " opened = today.opened + (today.opened < %(limit)s)::int,"
            " capped = today.capped + (today.opened >= %(limit)s)::int"
            " RETURNING opened, capped",
            {"origin": origin, "limit": limit},
        )
    )
    return not row["capped"]


def storable(value: Any) -> Any:
    """Return text or JSON as PostgreSQL stores it: without U+0000, and without numbers that JSON lacks."""
    if isinstance(value, str):
        return value.replace("\0", "\N{REPLACEMENT CHARACTER}")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {storable(name): storable(each) for name, each in value.items()}
    if isinstance(value, list):
        return [storable(each) for each in value]
    return value
