"""The people who decide, under pseudonyms."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from worker.database.database import Transaction, only


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
    row = only(
        tx.execute(
            "INSERT INTO moderators (subject, name) VALUES (%s, %s)"
            " ON CONFLICT (subject) DO UPDATE SET name = excluded.name RETURNING id",
            [subject, name],
        )
    )
    return Moderator(row["id"], name, senior)


def known(tx: Transaction, subject: str, name: str) -> Moderator | None:
    """Return a person who has been enrolled under this name."""
    row = tx.execute("SELECT id FROM moderators WHERE subject = %s AND name = %s", [subject, name]).fetchone()
    return Moderator(row["id"], name) if row else None


def preferences(tx: Transaction, moderator: Moderator) -> dict[str, Any]:
    """Return what a person has set; the page knows what it means."""
    row = tx.execute("SELECT preferences FROM moderators WHERE id = %s", [moderator.id]).fetchone()
    stored: dict[str, Any] = row["preferences"] if row else {}
    return stored


def set_preferences(tx: Transaction, moderator: Moderator, values: Mapping[str, Any]) -> None:
    """Keep what a person has set."""
    tx.execute("UPDATE moderators SET preferences = %s WHERE id = %s", [Jsonb(dict(values)), moderator.id])
