"""Connections that freeze, and workers that are told to stop."""

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from tests.chaos.conftest import SCALE, StartFleet
from tests.chaos.fleet import wait_for_all
from tests.chaos.proxy import FaultProxy
from tests.conftest import PATIENCE, RunningWorker
from worker.client import Client
from worker.embedded import EmbeddedServices, Valkey

# The socket timeouts, the health check and the way to a new connection.
RECOVERY_SECONDS = 30
IN_FLIGHT = 8


@pytest.fixture
def broker_proxy(valkey: Valkey) -> Iterator[FaultProxy]:
    """Provide a proxy before the broker."""
    with FaultProxy(valkey.port) as proxy:
        yield proxy


@pytest.fixture
def store_proxy(services: EmbeddedServices) -> Iterator[FaultProxy]:
    """Provide a proxy before the object store."""
    with FaultProxy(int(services.s3_endpoint.rpartition(":")[2])) as proxy:
        yield proxy


def _submit(client: Client, key: str, count: int) -> list[str]:
    return [client.submit(client.settings.upload_bucket, key) for _ in range(count)]


def test_frozen_connections_to_the_broker_hang_no_worker(
    fleet: StartFleet, client: Client, stored_picture: str, broker_proxy: FaultProxy
) -> None:
    """Open and silent for ever, they are given up: within half a minute the same processes answer again."""
    workers = fleet(2, DNF_REDIS_URL=f"redis://127.0.0.1:{broker_proxy.port}/0")
    pids = workers.pids()
    check_ids = _submit(client, stored_picture, 100)
    for worker in workers.workers:
        worker.wait_for_event("image_checked", count=10)
    broker_proxy.freeze()
    frozen = time.monotonic()
    # What a worker had taken before it may still finish; only more than that shows that it takes again.
    goals = {worker: len(_checked(worker)) + 2 * IN_FLIGHT for worker in workers.workers}
    while any(len(_checked(worker)) < goal for worker, goal in goals.items()):
        assert time.monotonic() - frozen < RECOVERY_SECONDS * PATIENCE
        check_ids += _submit(client, stored_picture, 5)
        time.sleep(0.1)
    counted = wait_for_all(client, workers, check_ids, seconds=60, supervise=False)
    assert counted == Counter(check_ids)
    assert workers.pids() == pids


def _checked(worker: RunningWorker) -> list[dict[str, Any]]:
    return [line for line in worker.log_lines() if line.get("event") == "image_checked"]


def test_a_store_that_is_slow_and_cuts_connections_has_no_upload_rejected_by_mistake(
    fleet: StartFleet, client: Client, stored_picture: str, store_proxy: FaultProxy
) -> None:
    """Delays, and resets in the midst of bodies: every upload has its verdict in the end."""
    workers = fleet(1, DNF_S3_ENDPOINT_URL=f"http://127.0.0.1:{store_proxy.port}")
    store_proxy.delay_seconds = 0.05
    store_proxy.bytes_a_second = 100_000
    check_ids = _submit(client, stored_picture, 80 * SCALE)
    for share in (0.1, 0.3, 0.5):
        workers.workers[0].wait_for_event("image_checked", count=int(share * len(check_ids)))
        store_proxy.reset()
    counted = wait_for_all(client, workers, check_ids, seconds=90 * SCALE, supervise=False)
    assert counted == Counter(check_ids)
    assert workers.events("image_rejected") == []


def test_workers_that_are_stopped_in_turn_lose_nothing_and_do_nothing_twice(
    fleet: StartFleet, client: Client, stored_picture: str, valkey: Valkey
) -> None:
    """A rolling restart under load: each ends with status 0, and every check was begun once."""
    workers = fleet(2)
    check_ids = _submit(client, stored_picture, 160 * SCALE)
    for number, worker in enumerate(workers.workers):
        worker.wait_for_event("image_checked", count=20 * (number + 1))
        assert worker.stop() == 0
        worker.start()
    counted = wait_for_all(client, workers, check_ids, seconds=60 * SCALE)
    assert counted == Counter(check_ids)
    assert workers.deaths == []
    with redis.Redis.from_url(valkey.url) as broker:
        begun = {check_id: broker.hget(f"deliveries:{check_id}", "count") for check_id in check_ids}
    assert set(begun.values()) == {b"1"}
