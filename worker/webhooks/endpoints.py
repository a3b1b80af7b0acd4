"""Endpoints: where platforms want events, which, and the secrets that sign them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args
from uuid import UUID

from psycopg import sql

from worker.database.database import Transaction
from worker.reviews import audit
from worker.webhooks.signing import new_secret

EventType = Literal[
    "image.verdict.v1", "image.rejected.v1", "image.decision.v1", "webhook.endpoint_disabled.v1"
]
EVENT_TYPES: tuple[EventType, ...] = get_args(EventType)
#: Why the sender disables one: it answered 410, or accepted nothing for days.
FailureReason = Literal["gone", "failing"]
DisabledReason = Literal["by_request", FailureReason]

#: For so long both secrets sign after a rotation, unless the request says otherwise.
OVERLAP_SECONDS = 86_400
MAX_DESCRIPTION = 500


class EndpointNotFoundError(LookupError):
    """There is no such endpoint."""


@dataclass(frozen=True)
class Endpoint:
    """One endpoint, without its secrets."""

    id: UUID
    url: str
    description: str
    event_types: tuple[EventType, ...]
    state: Literal["active", "disabled"]
    disabled_reason: DisabledReason | None
    #: The first failure since the last acceptance.
    failing_since: datetime | None
    created_at: datetime
    #: Until then the secret before the last rotation signs too.
    old_secret_until: datetime | None


_COLUMNS = sql.SQL(
    "id, url, description, event_types, state, disabled_reason, failing_since, created_at,"
    " CASE WHEN old_secret_until > now() THEN old_secret_until END AS old_secret_until"
)
_INSERT = sql.SQL(
    "INSERT INTO webhook_endpoints (url, event_types, description, secret) VALUES (%s, %s, %s, %s)"
    " RETURNING {}"
).format(_COLUMNS)
_ALL = sql.SQL("SELECT {} FROM webhook_endpoints ORDER BY created_at, id").format(_COLUMNS)
_ONE = sql.SQL("SELECT {} FROM webhook_endpoints WHERE id = %s").format(_COLUMNS)
_CHANGE = sql.SQL(
    "UPDATE webhook_endpoints SET url = coalesce(%(url)s, url),"
    " event_types = coalesce(%(types)s, event_types), description = coalesce(%(description)s, description),"
    " state = CASE %(active)s::boolean WHEN true THEN 'active' WHEN false THEN 'disabled' ELSE state END,"
    " disabled_reason = CASE %(active)s::boolean WHEN false THEN coalesce(disabled_reason, 'by_request')"
    " WHEN true THEN NULL ELSE disabled_reason END,"
    " failing_since = CASE WHEN %(active)s::boolean THEN NULL ELSE failing_since END,"
    " paused_until = CASE WHEN %(active)s::boolean THEN NULL ELSE paused_until END"
    " WHERE id = %(id)s RETURNING {}"
).format(_COLUMNS)
_ROTATE = sql.SQL(
    "UPDATE webhook_endpoints SET old_secret = secret,"
    " old_secret_until = now() + %(overlap)s * interval '1 second', secret = %(secret)s"
    " WHERE id = %(id)s RETURNING {}"
).format(_COLUMNS)


def create(
    tx: Transaction, url: str, event_types: Sequence[EventType], *, description: str = "", by: str
) -> tuple[Endpoint, str]:
    """Add an endpoint, whose URL the caller has checked; return it and its secret, which is shown once."""
    secret = new_secret()
    row = tx.execute(
        _INSERT,
        [url, list(dict.fromkeys(event_types)), description, secret],
    ).fetchone()
    endpoint = _endpoint(row)
    audit.record(
        tx, by, "webhook_created", str(endpoint.id), {"url": url, "types": list(endpoint.event_types)}
    )
    return endpoint, secret


def endpoints(tx: Transaction) -> list[Endpoint]:
    """Return all endpoints, oldest first."""
    rows = tx.execute(_ALL).fetchall()
    return [_endpoint(row) for row in rows]


def endpoint(tx: Transaction, endpoint_id: UUID) -> Endpoint:
    """Return one endpoint. Raises `EndpointNotFoundError`."""
    return _endpoint(tx.execute(_ONE, [endpoint_id]).fetchone())


def change(
    tx: Transaction,
    endpoint_id: UUID,
    *,
    by: str,
    url: str | None = None,
    event_types: Sequence[EventType] | None = None,
    description: str | None = None,
    active: bool | None = None,
) -> Endpoint:
    """Change what is given; an endpoint that is made active again begins without failures.

    Raises `EndpointNotFoundError`.
    """
    row = tx.execute(
        _CHANGE,
        {
            "id": endpoint_id,
            "url": url,
            "types": None if event_types is None else list(dict.fromkeys(event_types)),
            "description": description,
            "active": active,
        },
    ).fetchone()
    changed = _endpoint(row)
    audit.record(
        tx,
        by,
        "webhook_changed",
        str(endpoint_id),
        {"url": changed.url, "types": list(changed.event_types), "state": changed.state},
    )
    return changed


def delete(tx: Transaction, endpoint_id: UUID, *, by: str) -> None:
    """Remove an endpoint and its deliveries. Raises `EndpointNotFoundError`."""
    if not tx.execute("DELETE FROM webhook_endpoints WHERE id = %s", [endpoint_id]).rowcount:
        raise EndpointNotFoundError
    audit.record(tx, by, "webhook_deleted", str(endpoint_id))


def rotate(
    tx: Transaction, endpoint_id: UUID, *, by: str, overlap_seconds: float = OVERLAP_SECONDS
) -> tuple[Endpoint, str]:
    """Give an endpoint a new secret; the one before it signs too for `overlap_seconds`.

    Returns the new secret, which is shown once. Raises `EndpointNotFoundError`.
    """
    secret = new_secret()
    row = tx.execute(
        _ROTATE,
        {"id": endpoint_id, "secret": secret, "overlap": overlap_seconds},
    ).fetchone()
    rotated = _endpoint(row)
    audit.record(tx, by, "webhook_rotated", str(endpoint_id), {"overlap_seconds": overlap_seconds})
    return rotated, secret


def disabled(tx: Transaction) -> dict[FailureReason, int]:
    """Return how many endpoints are disabled because of their answers, by the reason."""
    rows = tx.execute(
        "SELECT reason, count(id) AS endpoints FROM unnest(%s::text[]) AS reason"
        " LEFT JOIN webhook_endpoints ON disabled_reason = reason GROUP BY reason",
        [list(get_args(FailureReason))],
    ).fetchall()
    return {row["reason"]: row["endpoints"] for row in rows}


def _endpoint(row: dict[str, Any] | None) -> Endpoint:
    if row is None:
        raise EndpointNotFoundError
    return Endpoint(**{**row, "event_types": tuple(row["event_types"])})
