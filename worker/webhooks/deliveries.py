"""Deliveries: each event to each endpoint that subscribes to it, attempted until it is accepted."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from worker.contract.messages import EndpointDisabled, EndpointDisabledEvent
from worker.database.database import Transaction
from worker.reviews import audit
from worker.webhooks.endpoints import FailureReason, endpoint

#: An attempt that was not reported after this time is made again: its process ended.
LEASE_SECONDS = 60
#: An endpoint that accepted nothing for this time is disabled.
FAILING_SECONDS = 5 * 86_400

DeliveryState = Literal["pending", "delivered", "failed"]


@dataclass(frozen=True)
class Attempt:
    """One attempt to make now."""

    endpoint_id: UUID
    event_id: str
    url: str
    #: The secrets that sign it, newest first.
    secrets: tuple[str, ...]
    type: str
    event: str
    #: 1 at the first.
    number: int


@dataclass(frozen=True)
class Delivery:
    """An event's way to an endpoint."""

    event_id: str
    type: str
    state: DeliveryState
    attempts: int
    #: When the next attempt is made; None for one that is over.
    next_attempt_at: datetime | None
    attempted_at: datetime | None
    #: Of the last attempt: the receiver's status, or the reason why there is none.
    status: int | None
    failure: str | None


def enqueue(tx: Transaction, event_id: str, event_type: str, event: str) -> None:
    """Deliver an event, JSON text, to every endpoint that subscribes to its type; idempotent by its id.

    An event to which no endpoint subscribes is not kept. A disabled endpoint's events are, for a replay.
    """
    new = tx.execute(
        "INSERT INTO webhook_events (id, type, event) SELECT %(id)s, %(type)s, %(event)s"
        " WHERE EXISTS (SELECT 1 FROM webhook_endpoints WHERE %(type)s = ANY (event_types))"
        " ON CONFLICT (id) DO NOTHING RETURNING 1",
        {"id": event_id, "type": event_type, "event": event},
    ).fetchone()
    if new:
        tx.execute(
            "INSERT INTO webhook_deliveries (endpoint_id, event_id)"
            " SELECT id, %s FROM webhook_endpoints WHERE %s = ANY (event_types) AND state = 'active'",
            [event_id, event_type],
        )


def claim(
    tx: Transaction, *, limit: int, for_each_endpoint: int, busy: Collection[UUID] = ()
) -> list[Attempt]:
    """Return attempts that are due and are now this process's, at most `limit`, none to a `busy` endpoint.

    Whoever has one reports its outcome within `LEASE_SECONDS`; otherwise it is claimed again.
    """
    rows = tx.execute(
        "WITH due AS ("
        " SELECT found.* FROM webhook_endpoints AS endpoint CROSS JOIN LATERAL ("
        "  SELECT endpoint_id, event_id FROM webhook_deliveries"
        "  WHERE endpoint_id = endpoint.id AND state = 'pending' AND next_attempt_at <= now()"
        "  ORDER BY next_attempt_at LIMIT %(each)s FOR UPDATE SKIP LOCKED) AS found"
        " WHERE endpoint.state = 'active' AND NOT endpoint.id = ANY (%(busy)s)"
        " AND (endpoint.paused_until IS NULL OR endpoint.paused_until <= now()) LIMIT %(limit)s)"
        " UPDATE webhook_deliveries AS delivery SET attempts = attempts + 1, attempted_at = now(),"
        "  next_attempt_at = now() + %(lease)s * interval '1 second'"
        " FROM due, webhook_endpoints AS endpoint, webhook_events AS event"
        " WHERE (delivery.endpoint_id, delivery.event_id) = (due.endpoint_id, due.event_id)"
        "  AND endpoint.id = delivery.endpoint_id AND event.id = delivery.event_id"
        " RETURNING delivery.endpoint_id, delivery.event_id, delivery.attempts AS number, endpoint.url,"
        "  endpoint.secret, event.type, event.event,"
        "  CASE WHEN endpoint.old_secret_until > now() THEN endpoint.old_secret END AS old_secret",
        {"each": for_each_endpoint, "limit": limit, "busy": list(busy), "lease": LEASE_SECONDS},
    ).fetchall()
    return [
        Attempt(
            row["endpoint_id"],
            row["event_id"],
            row["url"],
            (row["secret"], row["old_secret"]) if row["old_secret"] else (row["secret"],),
            row["type"],
            row["event"],
            row["number"],
        )
        for row in rows
    ]


def accepted(tx: Transaction, attempt: Attempt, status: int) -> None:
    """Report that the receiver has the event."""
    _report(tx, attempt, "delivered", status=status)
    tx.execute(
        "UPDATE webhook_endpoints SET failing_since = NULL WHERE id = %s AND failing_since IS NOT NULL",
        [attempt.endpoint_id],
    )


def failed(
    tx: Transaction,
    attempt: Attempt,
    failure: str,
    *,
    status: int | None = None,
    next_in_seconds: float | None,
    pause_seconds: float | None = None,
) -> FailureReason | None:
    """Report that the receiver has not taken the event, and return why its endpoint is disabled, if it is.

    The next attempt is made in `next_in_seconds`; None gives the event up. With `pause_seconds` nothing is
    sent to the endpoint for that time.
    """
    _report(
        tx,
        attempt,
        "failed" if next_in_seconds is None else "pending",
        status=status,
        failure=failure,
        next_in_seconds=next_in_seconds,
    )
    row = tx.execute(
        "UPDATE webhook_endpoints SET failing_since = coalesce(failing_since, now()),"
        " paused_until = coalesce(now() + %(pause)s * interval '1 second', paused_until) WHERE id = %(id)s"
        " RETURNING state, now() - failing_since >= %(failing)s * interval '1 second' AS too_long",
        {"pause": pause_seconds, "failing": FAILING_SECONDS, "id": attempt.endpoint_id},
    ).fetchone()
    if row is None or row["state"] != "active":
        return None
    return "gone" if failure == "gone" else "failing" if row["too_long"] else None


def disable(tx: Transaction, endpoint_id: UUID, reason: FailureReason, *, source: str) -> None:
    """Disable an endpoint, with a record in the audit and an event to the other endpoints."""
    tx.execute(
        "UPDATE webhook_endpoints SET state = 'disabled', disabled_reason = %s WHERE id = %s",
        [reason, endpoint_id],
    )
    disabled = endpoint(tx, endpoint_id)
    event = EndpointDisabledEvent(
        source=source,
        subject=str(endpoint_id),
        data=EndpointDisabled(
            endpoint=str(endpoint_id),
            url=disabled.url,
            reason=reason,
            failing_since=disabled.failing_since,
        ),
    )
    enqueue(tx, event.id, event.type, event.model_dump_json())
    audit.record(tx, "relay", "webhook_disabled", str(endpoint_id), {"reason": reason})


def replay(
    tx: Transaction,
    endpoint_id: UUID,
    *,
    by: str,
    event_id: str | None = None,
    since: datetime | None = None,
) -> int:
    """Deliver one event again, or all since a time, and return how many; to subscribed types only.

    Events are there for the retention of webhooks, from the time at which any endpoint subscribed to their
    type. Raises `EndpointNotFoundError`.
    """
    types = endpoint(tx, endpoint_id).event_types
    replayed = tx.execute(
        "INSERT INTO webhook_deliveries AS known (endpoint_id, event_id)"
        " SELECT %(endpoint)s, id FROM webhook_events WHERE type = ANY (%(types)s)"
        " AND (id = %(event)s OR at >= %(since)s)"
        " ON CONFLICT (endpoint_id, event_id) DO UPDATE"
        " SET state = 'pending', attempts = 0, next_attempt_at = now()",
        {"endpoint": endpoint_id, "types": list(types), "event": event_id, "since": since},
    ).rowcount
    detail: dict[str, object] = {"events": replayed}
    detail |= {"event": event_id} if event_id else {"since": since.isoformat() if since else None}
    audit.record(tx, by, "webhook_replayed", str(endpoint_id), detail)
    return replayed


def deliveries(
    tx: Transaction, endpoint_id: UUID, *, state: DeliveryState | None = None, limit: int = 100
) -> list[Delivery]:
    """Return an endpoint's deliveries, those attempted last first. Raises `EndpointNotFoundError`."""
    endpoint(tx, endpoint_id)
    rows: Sequence[dict[str, Any]] = tx.execute(
        "SELECT event_id, type, state, attempts, attempted_at, status, failure,"
        " CASE state WHEN 'pending' THEN next_attempt_at END AS next_attempt_at"
        " FROM webhook_deliveries JOIN webhook_events ON id = event_id"
        " WHERE endpoint_id = %(endpoint)s AND (%(state)s::text IS NULL OR state = %(state)s)"
        " ORDER BY attempted_at DESC NULLS FIRST, at DESC LIMIT %(limit)s",
        {"endpoint": endpoint_id, "state": state, "limit": limit},
    ).fetchall()
    return [Delivery(**row) for row in rows]


def waiting_seconds(tx: Transaction) -> float:
    """Return for how long the oldest delivery to an active endpoint has been due, 0.0 without one."""
    row = tx.execute(
        "SELECT extract(epoch FROM now() - min(delivery.next_attempt_at))::float8 AS seconds"
        " FROM webhook_deliveries AS delivery JOIN webhook_endpoints AS endpoint ON id = endpoint_id"
        " WHERE delivery.state = 'pending' AND endpoint.state = 'active'"
    ).fetchone()
    return max(0.0, row["seconds"] or 0.0) if row else 0.0


def forget(tx: Transaction, *, older_than_seconds: float, limit: int = 1000) -> int:
    """Delete old events, with their deliveries, that no active endpoint still waits for; return how many."""
    return tx.execute(
        "DELETE FROM webhook_events WHERE id IN (SELECT id FROM webhook_events AS event"
        " WHERE at < now() - %(age)s * interval '1 second' AND NOT EXISTS ("
        "  SELECT 1 FROM webhook_deliveries AS delivery JOIN webhook_endpoints AS endpoint"
        "  ON endpoint.id = endpoint_id WHERE event_id = event.id AND delivery.state = 'pending'"
        "  AND endpoint.state = 'active') LIMIT %(limit)s)",
        {"age": older_than_seconds, "limit": limit},
    ).rowcount


def _report(
    tx: Transaction,
    attempt: Attempt,
    state: DeliveryState,
    *,
    status: int | None = None,
    failure: str | None = None,
    next_in_seconds: float | None = None,
) -> None:
    # A replay, or a later attempt by another process, has a number of its own.
    tx.execute(
        "UPDATE webhook_deliveries SET state = %(state)s, status = %(status)s, failure = %(failure)s,"
        " next_attempt_at = now() + coalesce(%(next)s, 0) * interval '1 second'"
        " WHERE endpoint_id = %(endpoint)s AND event_id = %(event)s AND state = 'pending'"
        " AND attempts = %(number)s",
        {
            "state": state,
            "status": status,
            "failure": failure,
            "next": next_in_seconds,
            "endpoint": attempt.endpoint_id,
            "event": attempt.event_id,
            "number": attempt.number,
        },
    )
