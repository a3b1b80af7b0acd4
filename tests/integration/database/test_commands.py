"""`dnf-worker database` and what relay and page say of a database that they cannot use."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from uuid import uuid4

import psycopg
import pytest

from worker.database.database import Database
from worker.embedded.postgres import PostgreSQL
from worker.reviews.audit import record


def _ran(environment: Mapping[str, str], *arguments: str) -> tuple[int, str, str]:
    """Return exit status, output and errors of dnf-worker."""
    finished = subprocess.run(
        [sys.executable, "-m", "worker.cli", *arguments],
        env={**environment, "DNF_LOG_FORMAT": "json"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return finished.returncode, finished.stdout, finished.stderr


@pytest.fixture
def empty(postgres: PostgreSQL) -> Iterator[dict[str, str]]:
    """Return the DNF_ variables of a database without tables."""
    name = f"empty_{uuid4().hex}"
    postgres.create_database(name)
    yield postgres.environment(name)
    postgres.drop_database(name)


def test_migrate_names_what_it_applied_and_is_safe_to_repeat(empty: dict[str, str]) -> None:
    status, output, errors = _ran(empty, "database", "migrate")
    assert (status, output.splitlines()[0]) == (0, "applied 0001_reviews.sql"), errors
    assert _ran(empty, "database", "migrate")[:2] == (0, "nothing to apply\n")


def test_migrate_needs_both_urls(empty: dict[str, str]) -> None:
    del empty["DNF_DATABASE_OWNER_URL"]
    status, _, errors = _ran(empty, "database", "migrate")
    assert (status, "DNF_DATABASE_OWNER_URL" in errors) == (2, True)


def test_a_relay_on_an_empty_database_says_what_to_run_in_one_line(empty: dict[str, str]) -> None:
    """Without the owner's URL; with it, it would migrate."""
    del empty["DNF_DATABASE_OWNER_URL"]
    environment = {**empty, "DNF_REDIS_URL": "redis://127.0.0.1:1/0"}
    status, _, errors = _ran(environment, "relay")
    assert status == 1
    assert errors == (
        "Error: the database lacks 0001_reviews.sql: run `dnf-worker database migrate` with"
        " DNF_DATABASE_OWNER_URL\n"
    )


def test_the_audit_is_verified_and_a_change_fails_the_command(
    database: Database, database_environment: dict[str, str]
) -> None:
    """The head of one run is an argument of the next."""
    for number in range(3):
        with database.transaction() as tx:
            record(tx, "actor", "acted", f"{number}")
    status, output, errors = _ran(database_environment, "database", "verify-audit")
    assert (status, output.split(" head ")[0]) == (0, "3 records,"), errors
    head = output.split(" head ")[1].strip()
    assert _ran(database_environment, "database", "verify-audit", "--head", head)[0] == 0
    with psycopg.connect(database_environment["DNF_DATABASE_OWNER_URL"]) as owner:
        owner.execute("UPDATE audit SET actor = 'another' WHERE number = 2")
    status, _, errors = _ran(database_environment, "database", "verify-audit")
    assert (status, errors) == (
        1,
        "Error: the audit does not hold: record 2 was changed or one before it removed\n",
    )
