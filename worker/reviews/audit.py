"""The audit: who did what, in a chain of digests that PostgreSQL computes."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from worker.database.database import Database, Transaction


@dataclass(frozen=True)
class AuditReport:
    """The outcome of a verification."""

    #: Rows of the audit.
    records: int
    #: NUMBER:DIGEST of the last row; kept elsewhere, it proves later that no row up to it is missing.
    head: str
    #: What does not fit, in words; None when the chain holds.
    fault: str | None


def record(
    tx: Transaction, actor: str, action: str, subject: str, detail: Mapping[str, object] | None = None
) -> None:
    """Add a row to the audit; it takes its place in the chain when the transaction commits."""
    tx.execute(
        "INSERT INTO audit (actor, action, subject, detail) VALUES (%s, %s, %s, %s)",
        [actor, action, subject, Jsonb(dict(detail or {}))],
    )


@dataclass(frozen=True)
class Record:
    """A row of the audit."""

    number: int
    at: datetime
    #: The pseudonym of a moderator, or the name of a machine.
    actor: str
    #: The moderator's name; None for a machine.
    name: str | None
    action: str
    subject: str
    detail: Mapping[str, Any]


def records(tx: Transaction, *, before: int | None = None, limit: int = 100) -> list[Record]:
    """Return rows of the audit, newest first, of those with a number below `before`."""
    rows = tx.execute(
        "SELECT number, at, actor, name, action, audit.subject, detail FROM audit"
        " LEFT JOIN moderators ON moderators.id::text = actor"
        " WHERE number IS NOT NULL AND (%(before)s::bigint IS NULL OR number < %(before)s)"
        " ORDER BY number DESC LIMIT %(limit)s",
        {"before": before, "limit": limit},
    )
    return [Record(**row) for row in rows]


_VERIFY = """
SELECT number, expected, encode(hash, 'hex') AS digest, intact FROM (
  SELECT number, hash, row_number() OVER chain AS expected,
    hash = audit_hash(coalesce(lag(hash) OVER chain, ''::bytea), number, audit) AS intact
  FROM audit WINDOW chain AS (ORDER BY number NULLS LAST, id)
) AS chained
"""


def verify(database: Database, *, head: str | None = None) -> AuditReport:
    """Return whether every row is as it was written and none is missing between the others.

    `head` is that of an earlier report: rows that were cut off at the end are found with it alone.
    """
    with database.transaction() as tx:
        tx.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        tx.execute("SET LOCAL statement_timeout = 0")
        rows = tx.execute("SELECT count(*) AS records FROM audit").fetchone()
        broken = tx.execute(
            f"{_VERIFY} WHERE number IS DISTINCT FROM expected OR intact IS DISTINCT FROM true"
            " ORDER BY expected LIMIT 1"
        ).fetchone()
        last = tx.execute(
            "SELECT number, encode(hash, 'hex') AS digest FROM audit ORDER BY number DESC NULLS LAST LIMIT 1"
        ).fetchone()
        fault = (
            None if broken is None else f"record {broken['expected']} was changed or one before it removed"
        )
        if head and not fault:
            number, _, digest = head.partition(":")
            found = tx.execute(
                "SELECT 1 FROM audit WHERE number = %s AND encode(hash, 'hex') = %s",
                [int(number) if number.isdigit() else 0, digest],
            ).fetchone()
            fault = None if found else f"the record {head} of an earlier report is not in the audit"
    return AuditReport(
        records=rows["records"] if rows else 0,
        head=f"{last['number']}:{last['digest']}" if last else "0:",
        fault=fault,
    )
