"""The outbox: decisions on their way to the stream."""

from dataclasses import dataclass

from worker.database.database import Transaction, only

#: A published event is looked for on the stream again after this, and added if the broker lost it.
CONFIRM_SECONDS = 5


@dataclass(frozen=True)
class Outgoing:
    """One event that is due."""

    id: int
    event_id: str
    #: The CloudEvent's JSON.
    event: str
    #: Whether it was published before, and is now confirmed.
    published: bool


@dataclass(frozen=True)
class Backlog:
    """Events that are due and not published."""

    waiting: int
    #: Since the oldest of them was due; 0 without one.
    oldest_seconds: float


def due(tx: Transaction, *, limit: int) -> list[Outgoing]:
    """Return events to publish or to confirm, oldest first, locked: another relay gets others."""
    rows = tx.execute(
        "SELECT id, event_id, event, published_at IS NOT NULL AS published FROM outbox"
        " WHERE confirmed_at IS NULL AND due_at <= clock_timestamp()"
        " ORDER BY due_at, id LIMIT %s FOR UPDATE SKIP LOCKED",
        [limit],
    )
    return [Outgoing(**row) for row in rows]


def mark(tx: Transaction, events: list[Outgoing]) -> None:
    """Record that these events are on the stream."""
    tx.execute(
        "UPDATE outbox SET confirmed_at = CASE WHEN published_at IS NOT NULL THEN now() END,"
        " published_at = coalesce(published_at, now()), due_at = now() + %s * interval '1 second'"
        " WHERE id = ANY(%s)",
        [CONFIRM_SECONDS, [event.id for event in events]],
    )


def backlog(tx: Transaction) -> Backlog:
    """Return what should have been published."""
    row = only(
        tx.execute(
            "SELECT count(*) AS waiting,"
            " coalesce(extract(epoch FROM now() - min(due_at)), 0)::float8 AS oldest_seconds"
            " FROM outbox WHERE published_at IS NULL AND confirmed_at IS NULL AND due_at <= now()"
        )
    )
    return Backlog(**row)


def forget(tx: Transaction, *, older_than_seconds: float) -> int:
    """Delete events that were confirmed longer ago; return how many."""
    return tx.execute(
        "DELETE FROM outbox WHERE confirmed_at < now() - %s * interval '1 second'", [older_than_seconds]
    ).rowcount
