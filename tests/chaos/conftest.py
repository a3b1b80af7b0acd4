"""A broker that may be killed, a fleet of workers, and a picture in the store."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests.broken_broker import valkey_on_a_small_disk
from tests.chaos.fleet import Fleet
from tests.chaos.report import Report
from tests.conftest import MakePicture, StoreObject, settings_of
from worker.client import Client
from worker.embedded.services import EmbeddedServices
from worker.embedded.valkey import Valkey

# `make test` tests each promise with some hundred checks; DNF_CHAOS_SCALE=42 with ten thousand.
SCALE = int(os.environ.get("DNF_CHAOS_SCALE", "1"))

# At scale 1 the workers sweep and poll more often than the product does, so that tests wait less.
INTERVALS = {"NULL_SWEEP_SECONDS": "1", "NULL_WATCH_SECONDS": "0.5"} if SCALE == 1 else {}

# The same for the tests that wait until connections are given up; the product's timeout is five seconds.
SHORT_TIMEOUTS = {"NULL_SOCKET_SECONDS": "2"} if SCALE == 1 else {}

VISIBILITY_SECONDS = 6


class StartFleet(Protocol):
    """Starts fleets, which end with the test."""

    def __call__(self, size: int, **variables: str) -> Fleet:
        """Return `size` workers that consume; `variables` take precedence over `chaos_environment`."""


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    """Provide a broker of the test's own, which it may reconfigure, break and kill."""
    server = valkey_on_a_small_disk(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def chaos_environment(services: EmbeddedServices, valkey: Valkey) -> dict[str, str]:
    """Return DNF_ variables: small batches, and unacknowledged checks are redelivered after seconds."""
    return {
        **services.environment(),
        **INTERVALS,
        "DNF_REDIS_URL": valkey.url,
        "DNF_LOG_FORMAT": "json",
        "DNF_BATCH_SIZE": "4",
        "DNF_THREADS": "8",
        "DNF_VISIBILITY_TIMEOUT_SECONDS": str(VISIBILITY_SECONDS),
        "DNF_CHECK_DEADLINE_SECONDS": "5",
        # No event of a test is trimmed.
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
    """Provide a client of the test's workers."""
    with Client(settings_of(chaos_environment)) as client:
        yield client


@pytest.fixture(scope="session")
def stored_picture(store_object: StoreObject, make_picture: MakePicture) -> str:
    """Return the key of a good picture in the store."""
    store_object("chaos/good.jpg", make_picture(1))
    return "chaos/good.jpg"


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    """Provide the table of promises, to which the test adds its rows."""
    name = os.environ.get("DNF_CHAOS_REPORT")
    return Report(request.node.originalname, Path(name) if name else None)
