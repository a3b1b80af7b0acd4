"""The embedded PostgreSQL server."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from worker.embedded import postgres as module
from worker.embedded.postgres import NOBODY, PostgreSQL, postgres_programs
from worker.embedded.services import EmbeddedServices
from worker.embedded.startup import HOST, EmbeddedServiceError


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder that every user can enter."""
    with tempfile.TemporaryDirectory(prefix="dnf-postgres-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o711)
        yield Path(name)


def test_what_was_committed_survives_a_crash_on_the_same_port(folder: Path) -> None:
    """The service's role can connect and create nothing; the server asks for a password."""
    server = PostgreSQL(folder / "postgres")
    try:
        server.start()
        with psycopg.connect(server.owner_url()) as owner:
            owner.execute("CREATE TABLE kept AS SELECT 7 AS value")
        url = server.url()
        server.kill()
        server.start()
        assert server.url() == url
        with psycopg.connect(server.owner_url()) as owner:
            assert owner.execute("SELECT value FROM kept").fetchone() == (7,)
        with psycopg.connect(url) as service, pytest.raises(psycopg.errors.InsufficientPrivilege):
            service.execute("CREATE TABLE mine ()")
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(f"postgresql://postgres:wrong@{HOST}:{server.port}/postgres")
    finally:
        server.stop()
    assert not server.process or not server.process.alive


def test_the_services_have_a_database_where_one_is_asked_for() -> None:
    """Nothing of it is left when they stop."""
    with EmbeddedServices(database=True) as services:
        environment = services.environment()
        with psycopg.connect(environment["DNF_DATABASE_URL"]) as service:
            assert service.execute("SELECT 1").fetchone() == (1,)
        assert services.postgres
        process, folder = services.postgres.process, services.folder
    assert process
    assert not process.alive
    assert not folder.exists()


def test_programs_that_another_user_cannot_reach_are_copied(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A virtual environment below /root, say."""
    if os.geteuid():
        pytest.skip("only root starts the server as another user")
    hidden = folder / "hidden"
    package = postgres_programs().parents[1]
    for part in (package, package.with_name(f"{package.name}.libs")):
        if part.exists():
            shutil.copytree(part, hidden / part.name)
    hidden.chmod(0o700)
    monkeypatch.setattr(module, "postgres_programs", lambda: hidden / package.name / "pginstall" / "bin")
    server = PostgreSQL(folder / "postgres")
    try:
        server.start()
        with psycopg.connect(server.url()) as service:
            assert service.execute("SELECT 1").fetchone() == (1,)
    finally:
        server.stop()


def test_a_folder_that_the_servers_user_cannot_enter_is_named(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root starts the server as another user")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(EmbeddedServiceError, match=f"user {NOBODY} cannot enter"):
        PostgreSQL(closed / "postgres").start()
