"""The exporter's metrics of queues, streams and workers, with a real broker and real workers."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.chaos.conftest import StartFleet
from tests.scraping import Served
from worker.client import Client
from worker.contract.envelope import encode
from worker.contract.messages import QUEUES
from worker.embedded.guarded_process import GuardedProcess
from worker.embedded.startup import free_ports
from worker.embedded.valkey import Valkey

WaitUntil = Callable[..., None]


@pytest.fixture
def exporter(chaos_environment: dict[str, str], tmp_path: Path, wait_until: WaitUntil) -> Iterator[Served]:
    """Provide a running `dnf-worker exporter`, which must exit with status 0."""
    served = Served(free_ports(1)[0])
    process = GuardedProcess(
        [sys.executable, "-m", "worker.cli", "exporter"],
        log=tmp_path / "exporter.log",
        environment={
            **chaos_environment,
            "DNF_HTTP_PORT": str(served.port),
        },
    )
    wait_until(lambda: served.status("/livez") == 200, "the exporter is up")
    yield served
    assert process.stop() == 0, process.tail()


def test_the_metrics_match_the_broker(  # noqa: PLR0917 - the fixtures that it needs
    exporter: Served,
    fleet: StartFleet,
    client: Client,
    stored_picture: str,
    valkey: Valkey,
    wait_until: WaitUntil,
) -> None:
    """Queues, streams, groups, workers and backlog: with a worker, without workers, without a broker."""
    bucket = client.settings.upload_bucket
    workers = fleet(1)
    check_ids = [client.submit(bucket, stored_picture) for _ in range(30)]
    client.wait_for(*check_ids, timeout_seconds=240)
    received = client.verdicts("moderation", follow=False)
    for _ in range(9):
        next(received).ack()
    next(received)
    wait_until(lambda: exporter.figure("dnf_workers_alive") == 1, "the worker counts")
    wait_until(lambda: exporter.figure("dnf_verdict_stream_pending", group="moderation") == 1, "pending")
    with redis.Redis.from_url(valkey.url) as broker:
        broker.xgroup_create("verdicts", "audit", id="0")
        wait_until(lambda: exporter.figure("dnf_verdict_stream_lag", group="audit") == 30, "lag")
        assert exporter.figure("dnf_verdict_stream_lag", group="moderation") == 20
        assert exporter.figure("dnf_verdict_stream_length") == 30

        workers.stop()
        wait_until(lambda: exporter.figure("dnf_workers_alive") == 0, "the ended worker does not count")
        for _ in range(12):
            client.submit(bucket, stored_picture, submitted_at="2026-01-01T00:00:00Z")
        bulk = encode({"bucket": bucket, "key": "k"}, "image-checks.bulk")
        broker.lpush("image-checks.bulk\x06\x163", bulk)
        broker.lpush("image-checks.urgent", "malformed")
        wait_until(lambda: exporter.figure("dnf_queue_waiting", queue="image-checks") == 12, "waiting")
        samples = exporter.samples()

    def by(metric: str, /, **labels: str) -> float:
        return samples[metric, tuple(labels.items())]

    assert by("dnf_queue_waiting", queue="image-checks.bulk") == 1, "a list of another priority"
    assert by("dnf_queue_waiting", queue="image-checks.urgent") == 1
    assert by("dnf_queue_unacknowledged", queue="image-checks") == 0
    assert by("dnf_queue_oldest_age_seconds", queue="image-checks") > 86400
    assert by("dnf_queue_oldest_age_seconds", queue="image-checks.urgent") == 0, (
        "a malformed entry has no age"
    )
    # Without workers the backlog is that of one worker as fast as the last: batches of 4 took 0.1 seconds.
    assert by("dnf_expected_checks_per_second") == 40
    assert by("dnf_backlog_seconds", queue="image-checks") == 12 / 40
    assert by("dnf_fleet_backlog_seconds") == 14 / 40
    assert by("dnf_dead_letter_stream_length") == 0
    assert by("dnf_redis_up") == 1
    assert exporter.status("/readyz") == 200
    valkey.kill()
    wait_until(lambda: exporter.figure("dnf_redis_up") == 0, "Redis is down")
    assert {name for name, _ in exporter.samples()} == {"dnf_redis_up"}
    status, body = exporter.probe("/readyz")
    assert status == 503
    assert "refused" in body["reason"]
    assert exporter.status("/livez") == 200
    valkey.start()
    wait_until(lambda: exporter.status("/readyz") == 200, "Redis is up again")


def test_unacknowledged_checks_are_counted_by_queue_and_a_hung_worker_is_not_alive(
    exporter: Served, fleet: StartFleet, client: Client, stored_picture: str, wait_until: WaitUntil
) -> None:
    """A worker with eight threads takes checks of two queues."""
    # The watchdog would end it earlier.
    workers = fleet(1, NULL_HANGS="1", DNF_MODEL_STALL_SECONDS="600", DNF_CHECK_DEADLINE_SECONDS="2")
    wait_until(lambda: exporter.figure("dnf_workers_alive") == 1, "the worker counts")
    for queue, count in (("image-checks.urgent", 3), ("image-checks.bulk", 10)):
        for _ in range(count):
            client.submit(client.settings.upload_bucket, stored_picture, queue=queue)  # type: ignore[arg-type]

    def counted() -> bool:
        samples = exporter.samples()
        unacknowledged = {q: samples["dnf_queue_unacknowledged", (("queue", q),)] for q in QUEUES}
        waiting = {q: samples["dnf_queue_waiting", (("queue", q),)] for q in QUEUES}
        # Celery takes one message more than it has threads.
        return (
            unacknowledged["image-checks.urgent"] == 3
            and 5 <= unacknowledged["image-checks.bulk"] == 10 - waiting["image-checks.bulk"]
        )

    wait_until(counted, "unacknowledged checks are counted by queue")
    assert (exporter.figure("dnf_unacknowledged_oldest_age_seconds") or 0) > 0
    wait_until(lambda: exporter.figure("dnf_workers_alive") == 0, "the hung worker does not count")
    workers.workers[0].kill()


def test_the_cost_of_a_scrape_does_not_depend_on_the_length_of_the_queue(
    exporter: Served, valkey: Valkey, wait_until: WaitUntil
) -> None:
    """With 50,000 waiting checks Redis runs as many commands as with none, and none that reads them all."""
    entry = encode({"bucket": "uploads", "key": "k"}, "image-checks")
    with redis.Redis.from_url(valkey.url) as broker:

        def commands(waiting: int) -> dict[str, int]:
            seen = lambda: exporter.figure("dnf_queue_waiting", queue="image-checks") == waiting  # noqa: E731
            wait_until(seen, "the exporter sees the queue")
            broker.config_resetstat()
            # Metrics are read from Redis once a second at most.
            wait_until(lambda: seen() and "cmdstat_eval" in broker.info("commandstats"), "a new reading")
            stats: dict[str, Any] = broker.info("commandstats")
            own = {"cmdstat_info", "cmdstat_config|resetstat"}
            return {name: stat["calls"] for name, stat in stats.items() if name not in own}

        short = commands(0)
        for _ in range(50):
            broker.lpush("image-checks", *[entry] * 1000)
        assert commands(50_000) == short
        assert sum(short.values()) < 50
        assert not short.keys() & {"cmdstat_lrange", "cmdstat_hgetall", "cmdstat_hvals", "cmdstat_xrange"}
