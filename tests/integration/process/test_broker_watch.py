"""The broker watch logs each fault of a real broker when it begins and when it ends."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from structlog.testing import capture_logs

from tests.broken_broker import (
    Breaking,
    commands_denied,
    configured,
    disk_full,
    evicting,
    memory_full,
    not_durable,
    read_only,
)
from worker.broker.connection import connect
from worker.broker.faults import FaultName, server_faults
from worker.broker.transport import UnacknowledgedMessages
from worker.embedded.valkey import Valkey
from worker.process.broker_watch import BrokerWatch
from worker.settings import Settings


@pytest.fixture
def settings(valkey: Valkey, broker: redis.Redis) -> Settings:  # noqa: ARG001 - empties it
    """Return the settings of the module's server, which is empty."""
    return Settings(redis_url=valkey.url)


@pytest.mark.parametrize(
    ("fault", "broken", "remedy"),
    [
        ("evicting", evicting, "noeviction"),
        ("memory_full", memory_full, "maxmemory"),
        ("not_durable", not_durable, "appendonly"),
        ("read_only", read_only, "DNF_REDIS_URL"),
        ("disk_full", disk_full, "disk"),
    ],
)
def test_a_fault_is_logged_once_with_its_remedy_and_once_when_it_ends(
    valkey: Valkey,
    broker: redis.Redis,
    settings: Settings,
    wait_until: Callable[..., None],
    *,
    fault: FaultName,
    broken: Breaking,
    remedy: str,
) -> None:
    """No other fault is found, however often the broker is polled, and whatever it lets the watch trim."""
    broker.xadd("verdicts", {"event": "old"}, id="1-1")
    with connect(settings.broker) as client:
        wait_until(lambda: server_faults(client) == [], "a broker without faults")
        watch = BrokerWatch(settings)
        with capture_logs() as lines:
            watch.poll()
            with broken(valkey, broker):
                wait_until(lambda: [found.name for found in server_faults(client)] == [fault], fault)
                watch.poll()
                watch.poll()
            wait_until(lambda: server_faults(client) == [], "the fault is repaired")
            watch.poll()
            watch.poll()
    found, recovered = (line for line in lines if line["event"].startswith("broker_"))
    assert (found["event"], found["log_level"], found["fault"]) == ("broker_fault_found", "error", fault)
    assert remedy in found["remedy"]
    assert (recovered["event"], recovered["fault"]) == ("broker_recovered", fault)


def test_checks_are_not_taken_while_a_stream_is_full(settings: Settings, broker: redis.Redis) -> None:
    """The limit of either stream pauses the intake; a shorter stream resumes it."""
    broker.flushdb()
    broker.xgroup_create("verdicts", "away", id="0", mkstream=True)
    limits = {"verdict_stream_max_length": 3, "dead_letter_stream_max_length": 2}
    unacknowledged = UnacknowledgedMessages()
    watch = BrokerWatch(settings.model_copy(update=limits), unacknowledged)
    for stream, limit, cause in (
        ("verdicts", 3, "verdict_stream_full"),
        ("dead-letters", 2, "dead_letters_full"),
    ):
        for _ in range(limit):
            watch.poll()
            assert not unacknowledged.paused
            broker.xadd(stream, {"event": "x"})
        with capture_logs() as lines:
            watch.poll()
            assert unacknowledged.paused
            broker.delete(stream)
            watch.poll()
        assert not unacknowledged.paused
        changes = [(line["event"], line["causes"]) for line in lines if line["event"].startswith("intake_")]
        assert changes == [("intake_paused", [cause]), ("intake_resumed", [])]


def test_a_full_disk_is_found_although_it_fails_the_health_check(
    valkey: Valkey, broker: redis.Redis, wait_until: Callable[..., None]
) -> None:
    """After a pause redis-py sends a PING before its command, which a server with a full disk refuses."""
    with redis.Redis.from_url(valkey.url, health_check_interval=0.1) as client:
        wait_until(lambda: server_faults(client) == [], "a broker without faults")
        with disk_full(valkey, broker):
            time.sleep(0.2)  # then a health check is due
            assert [found.name for found in server_faults(client)] == ["disk_full"]


def test_a_server_without_a_memory_limit_never_evicts(broker: redis.Redis, settings: Settings) -> None:
    """Whatever its policy is."""
    with connect(settings.broker) as client, configured(broker, **{"maxmemory-policy": "allkeys-lru"}):
        assert server_faults(client) == []


def test_a_user_without_the_right_to_ask_changes_nothing(broker: redis.Redis, settings: Settings) -> None:
    """The worker does without the watch: too few rights are no fault of the broker."""
    watch = BrokerWatch(settings)
    with commands_denied(broker, "info"), capture_logs() as lines:
        watch.poll()
    assert lines == []


def test_an_unreachable_broker_changes_nothing(tmp_path: Path) -> None:
    """Whoever needs it reports that; a known fault stays known."""
    server = Valkey(tmp_path / "valkey", options=["--appendonly", "no"])
    server.start()
    watch = BrokerWatch(Settings(redis_url=server.url))
    with capture_logs() as lines:
        watch.poll()
        server.kill()
        watch.poll()
        server.start()
        watch.poll()
    server.stop()
    assert [(line["event"], line.get("fault")) for line in lines] == [("broker_fault_found", "not_durable")]
