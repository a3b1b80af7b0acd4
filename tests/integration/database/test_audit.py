"""The audit: rows are added, never changed, and chained."""

import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from worker.database.database import Database
from worker.reviews.audit import record, verify


def _recorded(database: Database, count: int) -> None:
    for number in range(count):
        with database.transaction() as tx:
            record(tx, "actor", "acted", f"subject-{number}", {"number": number})


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET actor = 'another'",
        "DELETE FROM audit",
        "TRUNCATE audit",
        "INSERT INTO audit (actor, action, subject, number) VALUES ('a', 'b', 'c', 9)",
        "INSERT INTO audit (actor, action, subject, at) VALUES ('a', 'b', 'c', now())",
        "ALTER TABLE audit DISABLE TRIGGER ALL",
        "UPDATE migrations SET sha256 = ''",
    ],
)
def test_postgresql_refuses_the_service_every_change_of_the_audit(database: Database, statement: str) -> None:
    """Neither rows nor their time, place and digest can be chosen."""
    _recorded(database, 1)
    with pytest.raises(psycopg.errors.InsufficientPrivilege), database.transaction() as tx:
        tx.execute(statement.encode())
    assert verify(database).fault is None


def test_transactions_at_once_make_one_chain(database: Database) -> None:
    """Eight threads add rows, several in each transaction, and some take theirs back."""
    start = threading.Barrier(8)

    def add(thread: int) -> None:
        start.wait()
        for number in range(10):
            with database.transaction() as tx:
                record(tx, f"thread-{thread}", "acted", f"{number}")
                record(tx, f"thread-{thread}", "acted again", f"{number}")
                if number % 5 == 4:
                    tx.rollback()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(add, range(8)))
    report = verify(database)
    assert (report.records, report.fault) == (8 * 8 * 2, None)
    with database.transaction() as tx:
        numbers = [row["number"] for row in tx.execute("SELECT number FROM audit ORDER BY number")]
    assert numbers == list(range(1, 129))


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("UPDATE audit SET detail = '{\"number\": 7}' WHERE number = 3", "record 3 was changed"),
        ("UPDATE audit SET at = at + interval '1 second' WHERE number = 1", "record 1 was changed"),
        ("DELETE FROM audit WHERE number = 2", "record 2 was changed or one before it removed"),
    ],
)
def test_a_change_by_the_owner_is_found(
    database: Database, database_environment: dict[str, str], statement: str, fault: str
) -> None:
    """Whoever owns the table can change it; the chain says where."""
    _recorded(database, 5)
    with psycopg.connect(database_environment["DNF_DATABASE_OWNER_URL"]) as owner:
        owner.execute(statement.encode())
    assert fault in str(verify(database).fault)


def test_rows_that_were_cut_off_at_the_end_are_found_with_an_earlier_head(
    database: Database, database_environment: dict[str, str]
) -> None:
    _recorded(database, 3)
    head = verify(database).head
    _recorded(database, 1)
    assert verify(database, head=head).fault is None
    with psycopg.connect(database_environment["DNF_DATABASE_OWNER_URL"]) as owner:
        owner.execute("DELETE FROM audit WHERE number >= 3")
    assert verify(database).fault is None
    assert "is not in the audit" in str(verify(database, head=head).fault)
