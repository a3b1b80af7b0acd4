"""The schema: migrated once, whoever starts at the same time, and never used in another form."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree
from uuid import uuid4

import psycopg
import pytest

from tests.conftest import settings_of
from worker.database.database import Database
from worker.database.errors import DatabaseUnavailableError, SchemaError
from worker.database.schema import FOLDER, check, migrate, migrations
from worker.embedded.postgres import PostgreSQL
from worker.embedded.startup import HOST, free_ports


@pytest.fixture
def empty(postgres: PostgreSQL) -> Iterator[dict[str, str]]:
    """Return the DNF_ variables of a database without tables."""
    name = f"empty_{uuid4().hex}"
    postgres.create_database(name)
    yield postgres.environment(name)
    postgres.drop_database(name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a copy of the migrations."""
    return copytree(FOLDER, tmp_path / "migrations")


def _urls(environment: dict[str, str]) -> tuple[str, str]:
    return environment["DNF_DATABASE_OWNER_URL"], environment["DNF_DATABASE_URL"]


def test_processes_that_start_at_once_apply_each_migration_once(empty: dict[str, str]) -> None:
    """Four processes migrate the same empty database."""
    program = (
        "import sys; from worker.database.schema import migrate;"
        "sys.stdout.write(str(len(migrate(*sys.argv[1:]))))"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, *_urls(empty)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(4)
    ]
    finished = [(process.communicate(timeout=120), process.returncode) for process in started]
    assert [status for _, status in finished] == [0] * 4, finished
    applied = sorted(int(output.split(b"\n")[-1]) for (output, _), _ in finished)
    assert applied == [0, 0, 0, len(migrations())]
    check(empty["DNF_DATABASE_URL"])


def test_a_database_without_the_newest_migration_says_what_to_run(
    empty: dict[str, str], folder: Path
) -> None:
    """A process without the owner's URL starts neither on an empty database nor on an older one."""
    url = empty["DNF_DATABASE_URL"]
    (folder / migrations(folder)[-1].name).unlink()
    for prepare in (lambda: None, lambda: migrate(*_urls(empty), folder=folder)):
        prepare()
        with pytest.raises(SchemaError, match="dnf-worker database migrate") as refused:
            Database.open(settings_of({"DNF_DATABASE_URL": url}).database)
        assert refused.value.reason == "unmigrated"


def test_a_changed_migration_file_is_refused(empty: dict[str, str], folder: Path) -> None:
    owner, url = _urls(empty)
    migrate(owner, url)
    changed = folder / migrations(folder)[0].name
    changed.write_text(changed.read_text() + "\n")
    for use in (lambda: migrate(owner, url, folder=folder), lambda: check(url, folder=folder)):
        with pytest.raises(SchemaError, match=changed.name) as refused:
            use()
        assert refused.value.reason == "changed"


def test_an_older_version_does_not_start_on_a_newer_database(empty: dict[str, str], folder: Path) -> None:
    number = len(migrations()) + 1
    (folder / f"{number:04}_newer.sql").write_text("CREATE TABLE newer ()")
    migrate(*_urls(empty), folder=folder)
    with pytest.raises(SchemaError, match="newer version") as refused:
        check(_urls(empty)[1])
    assert refused.value.reason == "newer"


def test_a_failing_migration_leaves_nothing_behind(empty: dict[str, str], folder: Path) -> None:
    number = len(migrations()) + 1
    broken = folder / f"{number:04}_broken.sql"
    broken.write_text("CREATE TABLE half (); SELECT 1 / 0;")
    with pytest.raises(psycopg.errors.DivisionByZero):
        migrate(*_urls(empty), folder=folder)
    broken.write_text("CREATE TABLE half ();")
    assert migrate(*_urls(empty), folder=folder) == [broken.name]


def test_the_owner_cannot_be_the_service_and_the_service_must_exist(empty: dict[str, str]) -> None:
    owner, url = _urls(empty)
    with pytest.raises(SchemaError, match="change the audit") as refused:
        migrate(owner, owner)
    assert refused.value.reason == "owner_is_role"
    with pytest.raises(SchemaError, match="CREATE ROLE nobody") as refused:
        migrate(owner, url.replace("//moderation:", "//nobody:"))
    assert refused.value.reason == "role_missing"
    migrate(owner, url)
    with pytest.raises(SchemaError, match="may change the table 'audit'") as refused:
        check(owner)
    assert refused.value.reason == "audit_writable"


def test_a_database_that_is_away_or_refuses_is_told_in_one_line(database_environment: dict[str, str]) -> None:
    (port,) = free_ports(1)
    wrong = database_environment["DNF_DATABASE_URL"].replace("//moderation:", "//moderation:x")
    for url, said in ((f"postgresql://u:secret@{HOST}:{port}/d", "refused"), (wrong, "password")):
        with pytest.raises(DatabaseUnavailableError, match=said) as refused:
            Database.open(settings_of({"DNF_DATABASE_URL": url}).database)
        assert "secret" not in str(refused.value)
