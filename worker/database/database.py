"""A process' connections to PostgreSQL."""

from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from typing import Self

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import DictRow, dict_row
from psycopg_pool import ConnectionPool, PoolTimeout

from worker.database.errors import DatabaseUnavailableError, SchemaError
from worker.database.schema import check, migrate
from worker.settings import DatabaseSettings

#: What the functions of the domain take: one transaction's connection, with rows as dicts.
Transaction = psycopg.Connection[DictRow]

# A connection is refused, lost or frozen after this; a waiting request hears of it.
_SECONDS = 5
_STATEMENT_SECONDS, _LOCK_SECONDS, _IDLE_SECONDS = 30, 10, 60


class Database:
    """The service's database: a pool of connections, safe for threads.

    `open` checks the schema first, and migrates it where the settings name its owner.
    """

    def __init__(self, url: str, *, connections: int) -> None:
        #: With the options of every connection; has the password.
        self.conninfo = make_conninfo(
            url,
            connect_timeout=_SECONDS,
            application_name="dnf-moderation",
            tcp_user_timeout=2000 * _SECONDS,
            keepalives_idle=2 * _SECONDS,
            keepalives_interval=_SECONDS,
            keepalives_count=2,
        )
        self._pool: ConnectionPool[Transaction] = ConnectionPool(
            self.conninfo,
            connection_class=psycopg.Connection[DictRow],
            kwargs={"row_factory": dict_row},
            min_size=1,
            max_size=connections,
            timeout=_SECONDS,
            # A longer back-off would keep the service away after the database is back.
            reconnect_timeout=_SECONDS,
            configure=_configure,
            check=ConnectionPool.check_connection,
            open=False,
        )

    @classmethod
    def open(cls, settings: DatabaseSettings) -> Self:
        """Return the database, checked and connected. Raises `SchemaError`, `DatabaseUnavailableError`."""
        if settings.url is None:
            raise SchemaError("not_configured", "DNF_DATABASE_URL is not set: reviews need PostgreSQL")
        url = settings.url.get_secret_value()
        if settings.owner_url is not None:
            migrate(settings.owner_url.get_secret_value(), url)
        check(url)
        database = cls(url, connections=settings.connections)
        database._pool.open()
        return database

    @contextmanager
    def transaction(self) -> Generator[Transaction]:
        """Provide a transaction, committed at the end of the block and rolled back after an exception.

        Raises `DatabaseUnavailableError`; where that is raised by the commit, it may have succeeded.
        """
        try:
            with self._pool.connection() as connection:
                yield connection
        except (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout) as error:
            raise DatabaseUnavailableError(f"PostgreSQL: {error}".strip()) from error

    def answers(self) -> bool:
        """Return whether PostgreSQL answers, for a readiness probe."""
        try:
            with self.transaction() as tx:
                tx.execute("SELECT 1")
        except DatabaseUnavailableError:
            return False
        return True

    async def notifications(self, channel: str, *, idle_seconds: float = 15.0) -> AsyncGenerator[str | None]:
        """Yield the payloads notified on a channel; None at the start, and when none came for a while.

        The connection is its own, not the pool's. Raises `DatabaseUnavailableError` when it is lost: what was
        notified until the next call is lost too, so a caller reads its state again at the first None.
        """
        try:
            async with await psycopg.AsyncConnection.connect(self.conninfo, autocommit=True) as connection:
                await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
                yield None
                while True:
                    heard = False
                    async for notification in connection.notifies(timeout=idle_seconds, stop_after=1):
                        heard = True
                        yield notification.payload
                    if not heard:
                        yield None
        except psycopg.OperationalError as error:
            raise DatabaseUnavailableError(f"PostgreSQL: {error}".strip()) from error

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def only(cursor: psycopg.Cursor[DictRow]) -> DictRow:
    """Return the row of a statement that always has one. Raises LookupError."""
    row = cursor.fetchone()
    if row is None:
        raise LookupError("a statement that always has a row had none")
    return row


def _configure(connection: Transaction) -> None:
    for name, seconds in (
        ("statement_timeout", _STATEMENT_SECONDS),
        ("lock_timeout", _LOCK_SECONDS),
        ("idle_in_transaction_session_timeout", _IDLE_SECONDS),
    ):
        connection.execute(sql.SQL("SET {} = {}").format(sql.Identifier(name), sql.Literal(f"{seconds}s")))
    connection.commit()
