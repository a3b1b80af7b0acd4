"""A broker that refuses writes or evicts keys."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pytest
import redis

from tests.broken_broker import Breaking, configured, disk_full, memory_full, read_only, too_few_replicas
from tests.chaos.conftest import SCALE, StartFleet
from tests.chaos.outcome import submit, wait_for_all, wait_for_share
from tests.chaos.report import Report
from tests.conftest import RunningWorker
from worker.client import Client
from worker.embedded.valkey import Valkey

# A fault lasts at least for so long: for several polls of each worker.
FAULT_SECONDS = 1 if SCALE == 1 else 3


@pytest.fixture
def admin(valkey: Valkey) -> Iterator[redis.Redis]:
    """Provide an administrator's client."""
    with redis.Redis.from_url(valkey.url) as client:
        yield client


def _refusals(worker: RunningWorker, error: str) -> int:
    events = {"queue_refused", "check_retried", "requeue_refused", "attempt_end_unreported"}
    return sum(line.get("event") in events and error in line["error"] for line in worker.log_lines())


# Each fault, the worker's name for it, and the server's error.
FAULTS: tuple[tuple[Breaking, str | None, str], ...] = (
    (disk_full, "disk_full", "MISCONF"),
    (read_only, "read_only", "read only replica"),
    (memory_full, "memory_full", "used memory"),
    (too_few_replicas, None, "NOREPLICAS"),
)


def test_a_broker_that_refuses_writes_is_logged_and_loses_no_verdict(
    fleet: StartFleet,
    client: Client,
    *,
    stored_picture: str,
    valkey: Valkey,
    admin: redis.Redis,
    report: Report,
    wait_until: Callable[..., None],
) -> None:
    """Disk full, a replica, memory full, too few replicas: the same processes go on after each."""
    workers = fleet(2)
    pids = workers.pids()
    checks = submit(client, [stored_picture], count=320 * SCALE)
    recovered = 0.0

    def wait_for_refusals(error: str, *, more_than: Sequence[int] = (0, 0)) -> None:
        for worker, count in zip(workers.workers, more_than, strict=True):
            wait_until(lambda w=worker, c=count: _refusals(w, error) > c, f"a log line with {error}")

    for number, (broken, fault, error) in enumerate(FAULTS):
        wait_for_share(client, checks, 0.15 * (number + 1))
        with broken(valkey, admin):
            began = time.monotonic()
            if fault:
                workers.workers[0].wait_for_event("broker_fault_found", fault=fault)
            wait_for_refusals(error)
            if fault == "memory_full":
                # Declaring queues is a write too: a worker that must connect now waits, and does not end.
                before = [_refusals(worker, error) for worker in workers.workers]
                admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                wait_for_refusals(error, more_than=before)
            time.sleep(max(0.0, FAULT_SECONDS - (time.monotonic() - began)))
        recovered = time.time()
    for _, fault, _ in FAULTS:
        if fault:
            workers.workers[0].wait_for_event("broker_recovered", fault=fault)
    outcome = wait_for_all(client, workers, checks, seconds=90 * SCALE, supervise=False)
    delay, verdicts = outcome.last_since(recovered)
    report.add(
        "Valkey with a full disk, as a replica, with full memory, with too few replicas, in turn",
        "a log line that names the fault; recovery when it ends; exactly one verdict each",
        checks=len(checks),
        answered=len(outcome.events),
        doubled=outcome.doubled,
        delay_seconds=delay,
        delay_since=f"from the last recovery {verdicts}",
    )
    assert outcome.once_each
    assert workers.pids() == pids


def test_a_broker_that_evicts_keys_is_logged_and_serves_again_after_the_fault(
    fleet: StartFleet,
    client: Client,
    *,
    stored_picture: str,
    admin: redis.Redis,
    report: Report,
    wait_until: Callable[..., None],
) -> None:
    """Evicted keys are lost; the same worker answers every check that is submitted afterwards."""
    workers = fleet(1, NULL_BATCH_SECONDS="0.05")
    pids = workers.pids()
    submit(client, [stored_picture], count=50)
    little_memory = str(admin.info("memory")["used_memory"] + (1 << 20))
    with configured(admin, **{"maxmemory-policy": "allkeys-lru", "maxmemory": little_memory}):
        for number in range(200):
            admin.set(f"filler:{number}", bytes(100_000))
        wait_until(lambda: admin.info("stats")["evicted_keys"] > 0, "an evicted key")
        workers.workers[0].wait_for_event("broker_fault_found", fault="evicting")
    workers.workers[0].wait_for_event("broker_recovered", fault="evicting")
    recovered = time.time()
    checks = submit(client, [stored_picture], count=250 * SCALE)
    outcome = wait_for_all(client, workers, checks, seconds=60 * SCALE, supervise=False)
    found = Counter({name: outcome.events[name] for name in checks})
    delay, verdicts = outcome.last_since(recovered)
    report.add(
        "Valkey that evicts (`allkeys-lru`)",
        "a log line that names the fault; exactly one verdict for each check submitted after the recovery",
        checks=len(checks),
        answered=len(+found),
        doubled=found.total() - len(+found),
        delay_seconds=delay,
        delay_since=f"from the recovery {verdicts}",
    )
    assert found == Counter(list(checks))
    assert workers.pids() == pids
