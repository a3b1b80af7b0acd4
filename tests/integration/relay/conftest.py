"""A relay between the module's database in Redis and the test's in PostgreSQL."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.conftest import settings_of
from tests.relay_process import RelayProcess
from worker.broker.verdict_stream import VerdictStream
from worker.settings import Settings


@pytest.fixture
def relay_environment(
    service_environment: dict[str, str], database_environment: dict[str, str]
) -> dict[str, str]:
    """Return the DNF_ variables of a relay that publishes without delay, with no second opinions."""
    return {
        **service_environment,
        **database_environment,
        "DNF_REVIEW_UNDO_SECONDS": "0",
        "DNF_REVIEW_DOUBLE_SHARE": "0",
    }


@pytest.fixture
def relay_settings(relay_environment: dict[str, str]) -> Settings:
    """Return the same as settings."""
    return settings_of(relay_environment)


@pytest.fixture
def broker(relay_settings: Settings) -> Iterator[redis.Redis]:
    """Provide a client of the emptied database in Redis."""
    with redis.Redis.from_url(relay_settings.redis_url.get_secret_value()) as client:
        client.flushdb()
        yield client


@pytest.fixture
def verdicts(relay_settings: Settings, broker: redis.Redis) -> VerdictStream:
    """Return the emptied verdict stream."""
    return VerdictStream.connect(relay_settings, client=broker)


@pytest.fixture
def relay(relay_environment: dict[str, str], tmp_path: Path) -> Iterator[RelayProcess]:
    """Provide a relay that the test starts."""
    process = RelayProcess(relay_environment, tmp_path / "relay.log")
    yield process
    process.kill()
