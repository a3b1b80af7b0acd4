"""The people who decide, under pseudonyms."""

from dataclasses import dataclass
from uuid import UUID

from worker.database.database import Transaction


@dataclass(frozen=True)
class Moderator:
    """A person at work; roles come with each request and are not stored."""

    #: The pseudonym under which events and figures know the person.
    id: UUID
    name: str
    #: Whether escalated reviews are offered.
    senior: bool = False


def enrol(tx: Transaction, subject: str, name: str, *, senior: bool = False) -> Moderator:
    """Return the person whom the identity provider calls `subject`, with a new pseudonym at first sight."""
    row = tx.execute(
        "INSERT INTO moderators (subject, name) VALUES (%s, %s)"
        " ON CONFLICT (subject) DO UPDATE SET name = excluded.name RETURNING id",
        [subject, name],
    ).fetchone()
    assert row is not None  # noqa: S101 - an upsert returns its row
    return Moderator(row["id"], name, senior)
