"""What is wrong with a real broker is named while it is, and what is mended too."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from structlog.testing import capture_logs

from tests.broken_broker import (
    Breaking,
    configured,
    disk_full,
    evicting,
    memory_full,
    not_durable,
    read_only,
    valkey_on_a_small_disk,
)
from worker.broker.connection import connect
from worker.broker.faults import FaultName, server_faults
from worker.embedded.valkey import Valkey
from worker.process.broker_watch import BrokerWatch
from worker.settings import Settings


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Provide a server that may be broken."""
    server = valkey_on_a_small_disk(tmp_path_factory.mktemp("watched"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def admin(valkey: Valkey) -> Iterator[redis.Redis]:
    """Provide a client for what an operator does."""
    with redis.Redis.from_url(valkey.url) as client:
        yield client


@pytest.mark.parametrize(
    ("fault", "broken", "advice"),
    [
        ("evicting", evicting, "noeviction"),
        ("memory_full", memory_full, "maxmemory"),
        ("not_durable", not_durable, "appendonly"),
        ("read_only", read_only, "DNF_REDIS_URL"),
        ("disk_full", disk_full, "disk"),
    ],
)
def test_a_fault_is_told_once_with_what_to_do_and_once_when_it_is_mended(
    valkey: Valkey,
    admin: redis.Redis,
    wait_until: Callable[..., None],
    *,
    fault: FaultName,
    broken: Breaking,
    advice: str,
) -> None:
    """It alone, however often the broker is looked at; before and after it nothing is wrong."""
    with connect(Settings(redis_url=valkey.url).broker) as client:
        wait_until(lambda: server_faults(client) == [], "a broker without faults")
        watch = BrokerWatch(Settings(redis_url=valkey.url).broker)
        with capture_logs() as lines:
            watch.poll()
            with broken(valkey, admin):
                wait_until(lambda: [found.name for found in server_faults(client)] == [fault], fault)
                watch.poll()
                watch.poll()
            wait_until(lambda: server_faults(client) == [], "a broker that is mended")
            watch.poll()
            watch.poll()
    told, mended = lines
    assert (told["event"], told["log_level"], told["fault"]) == ("broker_fault_found", "error", fault)
    assert advice in told["remedy"]
    assert (mended["event"], mended["fault"]) == ("broker_recovered", fault)


def test_a_full_disk_is_told_from_the_health_check_that_it_refuses(
    valkey: Valkey, admin: redis.Redis
) -> None:
    """A connection that was idle for a while asks whether it is alive before it asks anything else."""
    with redis.Redis.from_url(valkey.url, health_check_interval=1) as client:
        assert server_faults(client) == []
        with disk_full(valkey, admin):
            time.sleep(1.1)  # then the check is due
            assert [found.name for found in server_faults(client)] == ["disk_full"]


def test_a_server_without_a_limit_throws_nothing_away_whatever_its_policy(
    valkey: Valkey, admin: redis.Redis
) -> None:
    """There is no memory to be full."""
    with (
        connect(Settings(redis_url=valkey.url).broker) as client,
        configured(admin, **{"maxmemory-policy": "allkeys-lru"}),
    ):
        assert server_faults(client) == []


def test_a_user_who_may_not_ask_is_told_of_no_fault(valkey: Valkey, admin: redis.Redis) -> None:
    """Rights that are too few are no fault of the broker, and the worker does without this one."""
    watch = BrokerWatch(Settings(redis_url=valkey.url).broker)
    admin.execute_command("ACL", "SETUSER", "default", "-info")
    try:
        with capture_logs() as lines:
            watch.poll()
    finally:
        admin.execute_command("ACL", "SETUSER", "default", "+@all")
    assert lines == []


def test_a_broker_that_does_not_answer_is_no_fault_of_its_own(tmp_path: Path) -> None:
    """Whoever needs it says so; what was known of it stays known."""
    server = Valkey(tmp_path / "valkey", options=["--appendonly", "no"])
    server.start()
    watch = BrokerWatch(Settings(redis_url=server.url).broker)
    with capture_logs() as lines:
        watch.poll()
        server.kill()
        watch.poll()
        server.start()
        watch.poll()
    server.stop()
    assert [(line["event"], line.get("fault")) for line in lines] == [("broker_fault_found", "not_durable")]
