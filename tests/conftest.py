"""Real services, real worker processes and pictures, for every test that asks for them."""

import io
import itertools
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from subprocess import Popen
from typing import TYPE_CHECKING, Any, Protocol

import botocore.session
import numpy as np
import psycopg
import pytest
from PIL import Image, ImageFilter

from worker.database.database import Database
from worker.database.schema import migrate
from worker.embedded.guarded_process import GuardedProcess
from worker.embedded.postgres import PostgreSQL
from worker.embedded.services import EmbeddedServices
from worker.settings import Settings

if TYPE_CHECKING:
    from tests.site import RunningSite, StartSite

# Multiplies every time limit of the tests, for busy machines.
PATIENCE = float(os.environ.get("DNF_TEST_PATIENCE", "1"))

WORKER_START_SECONDS = 120.0 * PATIENCE

#: The module of a worker without networks, for tests of everything else.
NULL_WORKER = "tests.workers.null_worker"

# Each client of S3 has a session of its own, which reads megabytes of JSON; here one reads them for all.
botocore.session.create_loader = cache(botocore.session.create_loader)

# A shell makes background processes ignore these signals, and workers inherit that; the tests send both.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)


def settings_of(environment: Mapping[str, str], **changes: Any) -> Settings:
    """Return the settings of these DNF_ variables, with `changes` on top."""
    values = {
        name.removeprefix("DNF_").lower(): value
        for name, value in environment.items()
        if name.startswith("DNF_")
    }
    return Settings(**{**values, **changes})


class RunningWorker:
    """A worker process that writes its log to a file."""

    def __init__(self, environment: Mapping[str, str], log: Path, module: str = "worker.cli") -> None:
        self.environment = dict(environment)
        self.log = log
        self.module = module
        self.guarded: GuardedProcess | None = None
        self._lines: list[dict[str, Any]] = []
        self._read_bytes = 0
        self._launched_at_line = 0

    @property
    def process(self) -> Popen[bytes]:
        """The process."""
        assert self.guarded is not None
        return self.guarded.popen

    @property
    def redis_url(self) -> str:
        """The URL of its broker."""
        return self.environment["DNF_REDIS_URL"]

    def start(self) -> None:
        """Start the worker, or start it again after it ended; return when it consumes."""
        self.launch()
        self.wait_ready()

    def run_burst(self) -> None:
        """Run the worker until its queues are empty and every message is acknowledged."""
        self.launch("--burst")
        assert self.guarded is not None
        try:
            status = self.process.wait(WORKER_START_SECONDS)
        finally:
            self.guarded.kill()
        assert status == 0, self.guarded.tail(40)

    def launch(self, *options: str) -> None:
        """Start the process."""
        self._launched_at_line = len(self.log_lines())
        # One thread for the numerics: the tests share their cores with the services.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("DNF_")}
        self.guarded = GuardedProcess(
            [sys.executable, "-m", self.module, "run", *options],
            log=self.log,
            environment={**inherited, "OMP_NUM_THREADS": "1", **self.environment},
        )

    def wait_ready(self) -> None:
        """Wait until the launched process consumes."""
        assert self.guarded is not None
        deadline = time.monotonic() + WORKER_START_SECONDS
        while not any(
            line.get("event") == "worker_ready" for line in self.log_lines()[self._launched_at_line :]
        ):
            if not self.guarded.alive or time.monotonic() > deadline:
                status = self.guarded.kill()
                pytest.fail(f"the worker did not start (status {status}):\n{self.guarded.tail(40)}")
            time.sleep(0.05)

    def log_lines(self) -> list[dict[str, Any]]:
        """Return the JSON objects in the log so far, of all its starts."""
        if self.log.exists():
            with self.log.open("rb") as file:
                file.seek(self._read_bytes)
                *whole, _ = file.read().split(b"\n")
            for line in whole:
                self._read_bytes += len(line) + 1
                try:
                    parsed = json.loads(line)
                except ValueError:
                    continue
                if isinstance(parsed, dict):
                    self._lines.append(parsed)
        return list(self._lines)

    def wait_for_event(
        self, event: str, *, count: int = 1, seconds: float = 60.0, **fields: Any
    ) -> list[dict[str, Any]]:
        """Return the log lines of an event with these fields when there are at least `count` of them."""
        deadline = time.monotonic() + seconds * PATIENCE
        while True:
            found = [
                line
                for line in self.log_lines()
                if line.get("event") == event and all(line.get(k) == v for k, v in fields.items())
            ]
            if len(found) >= count:
                return found
            if time.monotonic() > deadline:
                tail = self.guarded.tail(40) if self.guarded else ""
                pytest.fail(f"{len(found)} of {count} {event} in {seconds} seconds:\n{tail}")
            time.sleep(0.05)

    def stop(self) -> int:
        """Shut the worker down gracefully; return its exit status."""
        assert self.guarded is not None
        return self.guarded.stop(grace_seconds=30.0)

    def kill(self) -> None:
        """Kill the worker (SIGKILL), like a crash."""
        assert self.guarded is not None
        self.guarded.kill()


class StartWorker(Protocol):
    """Starts workers, which end with the module."""

    def __call__(
        self, environment: Mapping[str, str] | None = None, *, module: str = "worker.cli", burst: bool = False
    ) -> RunningWorker:
        """Return a worker that consumes, or with `burst` one that has consumed everything and ended.

        `environment` takes precedence over `service_environment`.
        """


class MakePicture(Protocol):
    """Makes pictures."""

    def __call__(self, seed: int = 0, size: tuple[int, int] = (96, 80), format: str = "JPEG") -> bytes:  # noqa: A002
        """Return an encoded picture of (width, height) pixels that resembles a photograph."""


#: Stores an object in the test bucket; takes key and bytes, returns the ETag.
StoreObject = Callable[[str, bytes], str]


@pytest.fixture(scope="session")
def services() -> Iterator[EmbeddedServices]:
    """Provide Valkey and SeaweedFS for the session."""
    with EmbeddedServices(bucket="test-uploads") as running:
        yield running


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide an untrained bundle in the real format that loads in a second."""
    from tests.tiny_bundle import make_tiny_bundle

    return make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="session")
def new_database(services: EmbeddedServices) -> Callable[[], str]:
    """Provide a function that returns the URL of a database that no test has used."""
    numbers = itertools.count(1)
    return lambda: services.redis_url.removesuffix("/0") + f"/{next(numbers)}"


@pytest.fixture(scope="session")
def store_object(services: EmbeddedServices) -> StoreObject:
    """Provide a function that stores an object in the test bucket and returns its ETag."""
    s3 = services.seaweedfs.client()
    return lambda key, data: str(s3.put_object(Bucket=services.bucket, Key=key, Body=data)["ETag"])


@pytest.fixture(scope="module")
def service_environment(services: EmbeddedServices, new_database: Callable[[], str]) -> dict[str, str]:
    """Return DNF_ variables: the session's services and a database of the module's own."""
    return {
        **services.environment(),
        "DNF_REDIS_URL": new_database(),
        "DNF_LOG_FORMAT": "json",
    }


@pytest.fixture(scope="module")
def worker_process(
    service_environment: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[StartWorker]:
    """Provide a function that starts workers on the module's database, by default with the tiny bundle."""
    started: list[RunningWorker] = []

    def start(
        environment: Mapping[str, str] | None = None, *, module: str = "worker.cli", burst: bool = False
    ) -> RunningWorker:
        log = tmp_path_factory.mktemp("worker") / "worker.log"
        # A worker with a null detector must not wait for the bundle to be made.
        bundle = {"DNF_BUNDLE": str(request.getfixturevalue("tiny_bundle"))} if module == "worker.cli" else {}
        worker = RunningWorker({**service_environment, **bundle, **(environment or {})}, log, module)
        started.append(worker)
        worker.run_burst() if burst else worker.start()
        return worker

    yield start
    for worker in started:
        if worker.guarded is not None:
            worker.guarded.stop(grace_seconds=30.0)


@pytest.fixture(scope="session")
def make_picture() -> MakePicture:
    """Provide a function that makes pictures."""
    return _picture


def _picture(seed: int = 0, size: tuple[int, int] = (96, 80), format: str = "JPEG") -> bytes:  # noqa: A002
    """Return blurred noise of two scales over a gradient, with grain: smooth areas and edges."""
    random = np.random.default_rng(seed)
    width, height = size
    canvas = np.linspace(60, 180, width)[None, :, None] + np.linspace(-30, 30, height)[:, None, None]
    canvas = canvas + random.normal(0, 3, (height, width, 3))
    for radius in (2, 8):
        noise = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        canvas = (
            canvas + (np.asarray(noise.filter(ImageFilter.GaussianBlur(radius)), dtype=float) - 127) * 1.5
        )
    encoded = io.BytesIO()
    Image.fromarray(canvas.clip(0, 255).astype(np.uint8)).save(encoded, format, quality=90)
    return encoded.getvalue()


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """Provide a function that polls a condition; it fails the test, naming `what`, after `seconds`."""

    def wait(condition: Callable[[], object], what: str, *, seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds * PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"not within {seconds} seconds: {what}")
            time.sleep(0.05)

    return wait


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgreSQL]:
    """Provide a PostgreSQL server for the session, with a migrated database to copy."""
    with tempfile.TemporaryDirectory(prefix="dnf-postgres-", ignore_cleanup_errors=True) as folder:
        # PostgreSQL runs as another user where the tests run as root.
        Path(folder).chmod(0o711)
        server = PostgreSQL(Path(folder) / "postgres")
        server.start()
        server.create_database("migrated")
        migrate(server.owner_url("migrated"), server.url("migrated"))
        yield server
        server.kill()


_EMPTY = """
DO $$
DECLARE
  tables text;
BEGIN
  PERFORM pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid();
  SELECT string_agg(quote_ident(tablename), ', ') INTO tables FROM pg_tables
    WHERE schemaname = 'public' AND tablename NOT IN ('migrations', 'installation');
  EXECUTE 'TRUNCATE ' || tables || ' RESTART IDENTITY';
END
$$
"""


@pytest.fixture(scope="session")
def shared_database(postgres: PostgreSQL) -> str:
    """Return the name of a migrated database that each test leaves empty: to make one for each is slow."""
    postgres.create_database("tests", template="migrated")
    return "tests"


@pytest.fixture
def database_environment(postgres: PostgreSQL, shared_database: str) -> Iterator[dict[str, str]]:
    """Return the DNF_ variables of a migrated database, which the test has for itself and finds empty."""
    yield postgres.environment(shared_database)
    with psycopg.connect(postgres.administrator_url(shared_database), autocommit=True) as connection:
        connection.execute(_EMPTY)


@pytest.fixture
def database(database_environment: dict[str, str]) -> Iterator[Database]:
    """Provide the test's database, as the service uses it."""
    with Database.open(settings_of(database_environment).database) as database:
        yield database


@pytest.fixture
def start_site(
    services: EmbeddedServices,
    service_environment: dict[str, str],
    database_environment: dict[str, str],
    make_picture: MakePicture,
) -> "Iterator[StartSite]":
    """Provide a function that serves the review page on a database of the test's own."""
    from tests.site import sites

    with sites(services, {**service_environment, **database_environment}, make_picture) as start:
        yield start


@pytest.fixture
def site(start_site: "StartSite") -> "RunningSite":
    """Provide a review page behind a trusted proxy on this machine."""
    return start_site()
