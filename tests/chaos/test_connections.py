"""Connections to the broker that freeze."""

import time
from collections.abc import Iterator

import pytest

from tests.chaos.conftest import SCALE, SHORT_TIMEOUTS, StartFleet
from tests.chaos.outcome import Faults, submit, wait_for_all, wait_for_share, waiting
from tests.chaos.proxy import FaultProxy
from tests.chaos.report import Report
from tests.conftest import PATIENCE, RunningWorker
from worker.client import Client
from worker.embedded.valkey import Valkey

# Socket timeouts, the health check and a new connection.
RECOVERY_SECONDS = 30
IN_FLIGHT = 8


@pytest.fixture
def broker_proxy(valkey: Valkey) -> Iterator[FaultProxy]:
    """Provide a proxy in front of the broker."""
    with FaultProxy(valkey.port) as proxy:
        yield proxy


def test_frozen_connections_hang_no_worker(
    fleet: StartFleet,
    client: Client,
    *,
    stored_picture: str,
    broker_proxy: FaultProxy,
    valkey: Valkey,
    report: Report,
) -> None:
    """Workers give up connections that stay open and silent; the same processes answer within 30 seconds."""
    workers = fleet(2, DNF_REDIS_URL=f"redis://127.0.0.1:{broker_proxy.port}/0", **SHORT_TIMEOUTS)
    pids, faults, rounds, slowest = workers.pids(), Faults(valkey.url), min(SCALE, 10), 0.0
    checks = submit(client, [stored_picture], count=240 * SCALE)
    for number in range(rounds):
        wait_for_share(client, checks, 0.6 * (number + 0.5) / rounds)
        faults.record()
        broker_proxy.freeze()
        frozen = time.monotonic()
        # A worker can finish the checks that it had taken; more than these show that it takes again.
        goals = {worker: _checked(worker) + 2 * IN_FLIGHT for worker in workers.workers}
        while any(_checked(worker) < goal for worker, goal in goals.items()):
            assert time.monotonic() - frozen < RECOVERY_SECONDS * PATIENCE
            if waiting(client) < IN_FLIGHT:
                checks |= submit(client, [stored_picture], count=IN_FLIGHT)
            time.sleep(0.1)
        slowest = max(slowest, time.monotonic() - frozen)
    outcome = wait_for_all(client, workers, checks, seconds=60 * SCALE, supervise=False)
    report.add(
        f"all connections frozen and left half open, {rounds} times",
        f"the same processes answer again within {RECOVERY_SECONDS} seconds; exactly one verdict each",
        checks=len(checks),
        answered=len(outcome.events),
        doubled=outcome.doubled,
        delay_seconds=slowest,
        delay_since="until every worker answers new checks",
    )
    assert outcome.once_each
    assert workers.pids() == pids


def _checked(worker: RunningWorker) -> int:
    return sum(line.get("event") == "image_checked" for line in worker.log_lines())
