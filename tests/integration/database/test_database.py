"""Connections: transactions, outages, notifications."""

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from tests.verdicts import verdict_event
from worker.contract.messages import VerdictEvent
from worker.database import database as module
from worker.database.database import Database
from worker.database.errors import DatabaseUnavailableError
from worker.embedded.postgres import PostgreSQL
from worker.reviews.intake import open_review
from worker.settings import Settings


@pytest.fixture
def own_postgres() -> Iterator[PostgreSQL]:
    """Provide a server of the test's own, which it may kill."""
    with tempfile.TemporaryDirectory(prefix="dnf-postgres-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)
        server = PostgreSQL(Path(folder) / "postgres")
        server.start()
        yield server
        server.kill()


def test_the_service_is_back_soon_after_an_outage_longer_than_any_of_its_limits(
    own_postgres: PostgreSQL, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., None]
) -> None:
    """Each transaction fails in time meanwhile; with limits of one second the outage lasts three."""
    monkeypatch.setattr(module, "_SECONDS", 1)
    with Database(own_postgres.url(), connections=3) as database:
        database._pool.open()  # noqa: SLF001 - a database without a schema
        assert database.answers()
        own_postgres.kill()
        # The backend of a connection may outlive the server that was killed for a moment, and answer.
        wait_until(lambda: not database.answers(), "the end of the last backend")
        began = time.monotonic()
        while time.monotonic() - began < 3:
            asked = time.monotonic()
            with pytest.raises(DatabaseUnavailableError), database.transaction() as tx:
                tx.execute("SELECT 1")
            assert time.monotonic() - asked < 10
        assert not database.answers()
        own_postgres.start()
        wait_until(database.answers, "an answer", seconds=10)


def test_a_statement_that_hangs_is_ended(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the server, so that a lost client holds no lock."""
    monkeypatch.setattr(module, "_STATEMENT_SECONDS", 0.2)
    with Database(database.conninfo, connections=2) as impatient:
        impatient._pool.open()  # noqa: SLF001 - the schema was checked
        with pytest.raises(DatabaseUnavailableError, match="timeout"), impatient.transaction() as tx:
            tx.execute("SELECT pg_sleep(60)")


def test_a_page_hears_of_every_change_of_a_review(database: Database) -> None:
    """None first, when it listens; then one message for each change, and none for a renewed lease."""
    event = verdict_event()

    async def heard() -> list[str | None]:
        messages = []
        async with aclosing(database.notifications("reviews", idle_seconds=0.5)) as notifications:
            async for message in notifications:
                if not messages:
                    await asyncio.to_thread(_open_and_touch, database, event)
                messages.append(message)
                if message is None and len(messages) > 1:
                    break
        return messages

    listening, *told, idle = asyncio.run(heard())
    assert listening is idle is None
    (only,) = told
    assert event.data.check_id in str(only)


def _open_and_touch(database: Database, event: VerdictEvent) -> None:
    settings, raw = Settings().review, event.model_dump_json()
    with database.transaction() as tx:
        open_review(tx, settings, event, raw, origin="uncertain", probability=1.0)
    with database.transaction() as tx:
        tx.execute("UPDATE reviews SET claimed_until = claimed_until")
