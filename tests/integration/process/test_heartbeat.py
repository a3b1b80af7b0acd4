"""The heartbeat: who lives, and what each worker can do."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import redis

from worker.broker.keys import WORKER_RATES, WORKERS_ALIVE
from worker.operations.exporter import QueueCollector, exporter_registry
from worker.process.health import Health
from worker.process.heartbeat import Heartbeat, measured_rate
from worker.settings import Settings

WaitUntil = Callable[..., None]


@pytest.fixture
def settings(new_database: Callable[[], str]) -> Settings:
    """Return settings with an empty database."""
    return Settings(redis_url=new_database())  # type: ignore[arg-type]


@pytest.fixture
def broker(settings: Settings) -> Iterator[redis.Redis]:
    """Provide the broker."""
    with redis.Redis.from_url(settings.redis_url.get_secret_value()) as client:
        yield client


def _beating(settings: Settings, stack: ExitStack, **rates: float) -> None:
    for name, rate in rates.items():
        health = Health(stall_limit_seconds=90, clock=lambda: 0.0)
        health.became_ready()
        stack.callback(Heartbeat(settings.broker, name, health, pictures_per_second=rate).close)


def _expected(settings: Settings) -> float | None:
    collector = QueueCollector(settings)
    value = exporter_registry(collector).get_sample_value("dnf_expected_checks_per_second")
    collector.close()
    return value


def test_the_expected_rate_is_what_the_living_workers_measured_else_the_last_ones(
    settings: Settings, broker: redis.Redis, wait_until: WaitUntil
) -> None:
    """One worker's, on average; a setting overrides it, and before the first worker it is one a second."""
    assert measured_rate(broker) is None
    assert _expected(settings) == 1
    with ExitStack() as stack:
        _beating(settings, stack, one=2.0, two=4.0)
        wait_until(lambda: broker.zcard(WORKERS_ALIVE) == 2, "both live")
        assert _expected(settings) == measured_rate(broker) == 3
        assert _expected(settings.model_copy(update={"expected_checks_per_second": 7.0})) == 7
    assert broker.zcard(WORKERS_ALIVE) == 0
    assert _expected(settings) == 3
    with ExitStack() as stack:
        _beating(settings, stack, three=50.0)
        wait_until(lambda: broker.zcard(WORKER_RATES) == 1, "the last fleet is forgotten")
        assert _expected(settings) == measured_rate(broker) == 50
