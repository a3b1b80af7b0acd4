"""A broker that refuses to write, or throws away what it holds."""

import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import redis

from tests.broken_broker import Breaking, configured, disk_full, memory_full, read_only, too_few_replicas
from tests.chaos.conftest import SCALE, StartFleet
from tests.chaos.fleet import Fleet
from tests.chaos.outcome import submit, wait_for_all, wait_for_share
from tests.chaos.report import Report
from worker.client import Client
from worker.embedded.valkey import Valkey

REFUSED_SECONDS = 3


@pytest.fixture
def admin(valkey: Valkey) -> Iterator[redis.Redis]:
    """Provide a client for what an operator does."""
    with redis.Redis.from_url(valkey.url) as client:
        yield client


def _refusals(workers: Fleet, said: str) -> bool:
    events = ("queue_refused", "check_retried", "requeue_refused", "attempt_end_unreported")
    return any(said in line["error"] for name in events for line in workers.events(name))


# What is broken, what the worker calls it, and what the server says when it refuses.
FAULTS: tuple[tuple[Breaking, str | None, str], ...] = (
    (disk_full, "disk_full", "MISCONF"),
    (read_only, "read_only", "read only replica"),
    (memory_full, "memory_full", "used memory"),
    (too_few_replicas, None, "NOREPLICAS"),
)


def test_a_broker_that_refuses_to_write_is_named_in_the_log_and_loses_no_verdict(
    fleet: StartFleet,
    client: Client,
    *,
    stored_picture: str,
    valkey: Valkey,
    admin: redis.Redis,
    report: Report,
    wait_until: Callable[..., None],
) -> None:
    """Disk full, a replica, memory full, too few replicas: the same processes go on when it is mended."""
    workers = fleet(2)
    pids = workers.pids()
    checks = submit(client, [stored_picture], count=320 * SCALE)
    mended = 0.0
    for number, (broken, fault, refusal) in enumerate(FAULTS):
        wait_for_share(client, checks, 0.15 * (number + 1))
        with broken(valkey, admin):
            began = time.monotonic()
            if fault:
                workers.workers[0].wait_for_event("broker_fault_found", fault=fault)
            wait_until(lambda said=refusal: _refusals(workers, said), f"a log line with {refusal}")
            if fault == "memory_full":
                # Connecting writes too: a worker that must connect now waits, and does not end.
                admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            time.sleep(max(0.0, REFUSED_SECONDS - (time.monotonic() - began)))
        mended = time.time()
    for _, fault, _ in FAULTS:
        if fault:
            workers.workers[0].wait_for_event("broker_recovered", fault=fault)
    outcome = wait_for_all(client, workers, checks, seconds=90 * SCALE, supervise=False)
    delay, verdicts = outcome.last_since(mended)
    report.add(
        "Valkey with a full disk, as a replica, with full memory, with too few replicas, in turn",
        "a clear log line; recovery when the fault ends; exactly one verdict each",
        checks=len(checks),
        answered=len(outcome.events),
        doubled=outcome.doubled,
        delay_seconds=delay,
        delay_since=f"from the last recovery {verdicts}",
    )
    assert outcome.once_each
    assert workers.pids() == pids


def test_a_broker_that_throws_keys_away_is_named_in_the_log_and_serves_again_when_mended(
    fleet: StartFleet,
    client: Client,
    *,
    stored_picture: str,
    admin: redis.Redis,
    report: Report,
    wait_until: Callable[..., None],
) -> None:
    """What it threw away is gone; the workers say so, live, and answer what is submitted after the mend."""
    workers = fleet(1)
    pids = workers.pids()
    submit(client, [stored_picture], count=50)
    little_memory = str(admin.info("memory")["used_memory"] + (1 << 20))
    with configured(admin, **{"maxmemory-policy": "allkeys-lru", "maxmemory": little_memory}):
        for number in range(200):
            admin.set(f"filler:{number}", bytes(100_000))
        wait_until(lambda: admin.info("stats")["evicted_keys"] > 0, "a key that is thrown away")
        workers.workers[0].wait_for_event("broker_fault_found", fault="evicting")
    workers.workers[0].wait_for_event("broker_recovered", fault="evicting")
    mended = time.time()
    checks = submit(client, [stored_picture], count=250 * SCALE)
    outcome = wait_for_all(client, workers, checks, seconds=60 * SCALE, supervise=False)
    found = Counter({name: outcome.events[name] for name in checks})
    delay, verdicts = outcome.last_since(mended)
    report.add(
        "Valkey that evicts (`allkeys-lru`)",
        "a clear log line; what is submitted after the recovery has exactly one verdict",
        checks=len(checks),
        answered=len(+found),
        doubled=found.total() - len(+found),
        delay_seconds=delay,
        delay_since=f"from the recovery {verdicts}",
    )
    assert found == Counter(list(checks))
    assert workers.pids() == pids
