"""The schema: numbered SQL files, applied once each, and checked whenever a process starts."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from worker.database.errors import DatabaseUnavailableError, SchemaError
from worker.telemetry.logs import get_logger

log = get_logger(__name__)

FOLDER = Path(__file__).with_name("migrations")

#: Tables that the service's role may read and add to, with the columns that it fills; it changes nothing.
INSERT_ONLY = {"audit": ("actor", "action", "subject", "detail")}

_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
# The advisory lock of whoever migrates; any constant does.
_LOCK = 0x444E46

_TABLE = """
CREATE TABLE IF NOT EXISTS migrations (
  number int PRIMARY KEY,
  name text NOT NULL,
  sha256 text NOT NULL,
  applied_at timestamptz NOT NULL DEFAULT now()
)
"""


@dataclass(frozen=True)
class Migration:
    """One numbered file."""

    number: int
    name: str
    text: str

    @property
    def sha256(self) -> str:
        """The digest of its text, which never changes once it was applied."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def migrations(folder: Path = FOLDER) -> list[Migration]:
    """Return the migrations of a folder, whose numbers run from 1 without gaps."""
    found = [
        Migration(int(match[1]), path.name, path.read_text(encoding="utf-8"))
        for path in sorted(folder.iterdir())
        if (match := _NAME.fullmatch(path.name))
    ]
    numbers = [migration.number for migration in found]
    if numbers != list(range(1, len(found) + 1)):
        raise ValueError(f"the migrations in {folder} are numbered {numbers}")
    return found


def migrate(owner_url: str, url: str, *, folder: Path = FOLDER) -> list[str]:
    """Apply the missing migrations as the owner and return their names; the role of `url` may use the tables.

    Processes that do so at once wait for each other. Raises `SchemaError` and `DatabaseUnavailableError`.
    """
    role = str(conninfo_to_dict(url).get("user") or "")
    if role == conninfo_to_dict(owner_url).get("user"):
        raise SchemaError(
            "owner_is_role",
            f"DNF_DATABASE_URL and DNF_DATABASE_OWNER_URL both name {role!r}, who could then change the"
            " audit: give the service a role of its own",
        )
    applied = []
    with _connected(owner_url) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [_LOCK])
        with connection.transaction():
            if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]).fetchone():
                raise SchemaError(
                    "role_missing",
                    f"PostgreSQL has no role {role!r}, which DNF_DATABASE_URL names:"
                    f" CREATE ROLE {role} LOGIN PASSWORD '...'",
                )
            connection.execute(_TABLE)
        known = migrations(folder)
        for migration in _missing(connection, known):
            with connection.transaction():
                connection.execute(migration.text.encode())
                connection.execute(
                    "INSERT INTO migrations (number, name, sha256) VALUES (%s, %s, %s)",
                    [migration.number, migration.name, migration.sha256],
                )
            applied.append(migration.name)
            log.info("migration_applied", migration=migration.name)
        with connection.transaction():
            _grant(connection, role)
    return applied


def check(url: str, *, folder: Path = FOLDER) -> None:
    """Check that the schema is this version's and that the role of `url` cannot change the audit.

    Raises `SchemaError` and `DatabaseUnavailableError`.
    """
    with _connected(url) as connection:
        exists = connection.execute("SELECT to_regclass('migrations')").fetchone()
        missing = _missing(connection, migrations(folder)) if exists and exists[0] else migrations(folder)
        if missing:
            raise SchemaError(
                "unmigrated",
                f"the database lacks {missing[0].name}: run `dnf-worker database migrate` with"
                " DNF_DATABASE_OWNER_URL",
            )
        for table in INSERT_ONLY:
            writable = connection.execute(
                "SELECT has_table_privilege(%s, 'UPDATE, DELETE, TRUNCATE')", [table]
            ).fetchone()
            if writable and writable[0]:
                raise SchemaError(
                    "audit_writable",
                    f"the role of DNF_DATABASE_URL may change the table {table!r}: give the service a role of"
                    " its own, and run `dnf-worker database migrate`",
                )


def _connected(url: str) -> psycopg.Connection:
    try:
        return psycopg.connect(url, autocommit=True, connect_timeout=5)
    except psycopg.OperationalError as error:
        raise DatabaseUnavailableError(f"PostgreSQL cannot be reached: {error}".strip()) from error


def _missing(connection: psycopg.Connection, known: Sequence[Migration]) -> list[Migration]:
    """Return the migrations that were not applied; raises for applied ones that differ."""
    rows = connection.execute("SELECT number, name, sha256 FROM migrations ORDER BY number").fetchall()
    by_number = {migration.number: migration for migration in known}
    for number, name, sha256 in rows:
        migration = by_number.pop(number, None)
        if migration is None:
            raise SchemaError(
                "newer",
                f"the database has the migration {name}, which this version does not know: run the newer"
                " version",
            )
        if migration.sha256 != sha256:
            raise SchemaError(
                "changed", f"{migration.name} differs from the migration of that number that was applied"
            )
    return list(by_number.values())


def _grant(connection: psycopg.Connection, role: str) -> None:
    """Grant the tables, as narrowly as `INSERT_ONLY` says; the migrations themselves are only read."""
    name = sql.Identifier(role)
    statements = [
        sql.SQL("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {}").format(name),
        sql.SQL("REVOKE INSERT, UPDATE, DELETE ON migrations FROM {}").format(name),
    ]
    for table, columns in INSERT_ONLY.items():
        filled = sql.SQL(", ").join(map(sql.Identifier, columns))
        names = {"table": sql.Identifier(table), "columns": filled, "role": name}
        statements += [
            sql.SQL("REVOKE ALL ON {table} FROM {role}").format(**names),
            sql.SQL("GRANT SELECT, INSERT ({columns}) ON {table} TO {role}").format(**names),
        ]
    for statement in statements:
        connection.execute(statement)
