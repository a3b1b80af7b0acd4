"""A broker that may be killed, a fleet of workers, pictures in the store."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests.broken_broker import valkey_on_a_small_disk
from tests.chaos.fleet import Fleet
from tests.chaos.report import Report
from tests.conftest import settings_of
from worker.client import Client
from worker.embedded.services import EmbeddedServices
from worker.embedded.valkey import Valkey

# `make test` proves each promise with some hundred checks; DNF_CHAOS_SCALE=40 with ten thousand.
SCALE = int(os.environ.get("DNF_CHAOS_SCALE", "1"))

VISIBILITY_SECONDS = 6


class StartFleet(Protocol):
    """Starts fleets; all of them end with the test."""

    def __call__(self, size: int, **variables: str) -> Fleet:
        """Return `size` workers that consume, with DNF_ variables on top of the test's own."""


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    """Provide a broker of this test's own; a file that may grow no more is an error to it, not its end."""
    server = valkey_on_a_small_disk(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def chaos_environment(services: EmbeddedServices, valkey: Valkey) -> dict[str, str]:
    """Return the DNF_ variables: small batches, and lost checks are delivered again after seconds."""
    return {
        **services.environment(),
        "DNF_REDIS_URL": valkey.url,
        "DNF_LOG_FORMAT": "json",
        "DNF_BATCH_SIZE": "4",
        "DNF_THREADS": "8",
        "DNF_VISIBILITY_TIMEOUT_SECONDS": str(VISIBILITY_SECONDS),
        "DNF_CHECK_DEADLINE_SECONDS": "5",
        # Events of a whole test, however many.
        "DNF_VERDICT_STREAM_MAX_LENGTH": "100000",
        "DNF_THUMBNAIL_SIDE_PIXELS": "16",
        "NULL_BATCH_SECONDS": "0.1",
    }


@pytest.fixture
def fleet(chaos_environment: dict[str, str], tmp_path: Path) -> Iterator[StartFleet]:
    """Provide a function that starts workers."""
    fleets: list[Fleet] = []

    def start(size: int, **variables: str) -> Fleet:
        fleets.append(Fleet(tmp_path, {**chaos_environment, **variables}, size))
        fleets[-1].start()
        return fleets[-1]

    yield start
    for started in fleets:
        started.stop()


@pytest.fixture
def client(chaos_environment: dict[str, str]) -> Iterator[Client]:
    """Provide a producer and consumer."""
    with Client(settings_of(chaos_environment)) as client:
        yield client


@pytest.fixture(scope="session")
def stored_picture(services: EmbeddedServices, make_picture: Callable[..., bytes]) -> str:
    """Return the key of a good picture in the store."""
    services.seaweedfs.client().put_object(Bucket=services.bucket, Key="chaos/good.jpg", Body=make_picture(1))
    return "chaos/good.jpg"


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    """Provide this test's rows of the table of promises."""
    name = os.environ.get("DNF_CHAOS_REPORT")
    return Report(request.node.originalname, Path(name) if name else None)
