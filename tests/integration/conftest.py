"""Settings, clients and servers that the modules of this folder share."""

from collections.abc import Iterator

import pytest
import redis

from tests.broken_broker import valkey_on_a_small_disk
from tests.conftest import settings_of
from worker.client import Client
from worker.embedded.valkey import Valkey
from worker.settings import Settings


@pytest.fixture(scope="module")
def settings(service_environment: dict[str, str]) -> Settings:
    """Return the settings of the module's workers and clients."""
    return settings_of(service_environment)


@pytest.fixture(scope="module")
def client(settings: Settings) -> Iterator[Client]:
    """Provide a client of the module's workers."""
    with Client(settings) as client:
        yield client


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Provide a server of the module's own, which its tests may reconfigure, break and kill."""
    server = valkey_on_a_small_disk(tmp_path_factory.mktemp("valkey"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def broker(valkey: Valkey) -> Iterator[redis.Redis]:
    """Provide a client of the module's own server, emptied."""
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def no_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let redis-py retry without pauses in this process."""
    monkeypatch.setattr("redis.retry.sleep", lambda _seconds: None)
