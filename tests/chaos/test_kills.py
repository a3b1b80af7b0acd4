"""Workers, broker and connections are killed under load."""

import re
import time
from pathlib import Path

import pytest
import redis

from tests.chaos.conftest import SCALE, VISIBILITY_SECONDS, StartFleet
from tests.chaos.outcome import Faults, submit, wait_for_all, wait_for_share, waiting
from tests.chaos.report import Report
from tests.conftest import PATIENCE
from worker.broker import keys
from worker.client import Client
from worker.embedded.valkey import Valkey
from worker.settings import Settings

# A check in flight is delivered again at the first sweep after the visibility timeout. Then it runs isolated,
# after the checks that run at that moment.
SWEEP_SECONDS, RUN_SECONDS = 5, 5
BOUND_SECONDS = VISIBILITY_SECONDS + SWEEP_SECONDS + RUN_SECONDS

CHECKS = 240

SERVE = Path(__file__).parents[2] / "deploy/redis/serve.sh"

# An unacknowledged check is not delivered again within a test.
LONG = {"DNF_VISIBILITY_TIMEOUT_SECONDS": "600", "DNF_CHECK_DEADLINE_SECONDS": "500"}


def test_killed_workers_lose_no_verdict_and_publish_none_twice(
    fleet: StartFleet, client: Client, stored_picture: str, valkey: Valkey, report: Report
) -> None:
    """Every few seconds one of two workers is killed during its batches; each check has one verdict.

    A check in flight waits for at most the visibility timeout, the sweep, and its run.
    """
    # Slow enough for load at most of the kills, and fast enough for every redelivered check to run isolated.
    workers, faults = fleet(2, NULL_BATCH_SECONDS="0.2"), Faults(valkey.url)
    checks, most, kills = submit(client, [stored_picture], count=CHECKS * SCALE), 4 * SCALE, 0
    while kills < most and waiting(client):
        wait_for_share(client, checks, 0.8 * (kills + 0.5) / most)
        workers.kill(kills)
        faults.record()
        workers.restart(kills)
        kills += 1
    assert kills >= 2, "not both workers were killed"
    outcome = wait_for_all(client, workers, checks, seconds=90 * SCALE)
    delay = faults.worst_delay_seconds(outcome)
    report.add(
        f"{kills} SIGKILLs of a worker under load",
        "exactly one verdict each",
        checks=len(checks),
        answered=len(outcome.events),
        doubled=outcome.doubled,
        delay_seconds=delay,
        delay_since=f"after the kill (bound {BOUND_SECONDS})",
    )
    assert outcome.once_each
    assert workers.deaths == [], "a worker ended by itself"
    assert delay < BOUND_SECONDS * PATIENCE


def test_checks_that_cannot_run_isolated_in_time_are_answered_before_the_queue_behind_them(
    fleet: StartFleet, client: Client, stored_picture: str, valkey: Valkey
) -> None:
    """A process was lost at six checks, so each runs isolated; within the deadline of one only three can."""
    threads = 6
    isolated = submit(client, [stored_picture], count=threads)
    with redis.Redis.from_url(valkey.url) as broker:
        for name in isolated:
            broker.hset(keys.attempts(name), "by:lost", 1)
    behind = submit(client, [stored_picture], count=24)
    workers = fleet(
        1,
        DNF_THREADS=str(threads),
        DNF_BATCH_SIZE=str(threads),
        DNF_CHECK_DEADLINE_SECONDS=str(2.1 * PATIENCE),
        DNF_VISIBILITY_TIMEOUT_SECONDS=str(int(20 * PATIENCE)),
        NULL_BATCH_SECONDS=str(0.6 * PATIENCE),
    )
    outcome = wait_for_all(client, workers, isolated | behind, seconds=90, supervise=False)
    assert outcome.once_each
    assert workers.events("check_retried"), "all of them ran isolated in time"
    order = sorted(outcome.answered_at, key=lambda name: outcome.answered_at[name])
    # Each that is answered frees a thread for the queue, and its checks may run between two isolated ones: at
    # most one before the second, two before the third, and so on.
    assert isolated.keys() <= set(order[: threads + sum(range(threads))])
    with redis.Redis.from_url(valkey.url) as broker:
        assert {broker.hget(keys.attempts(name), "count") for name in isolated} == {b"1"}


def test_a_broker_killed_six_times_loses_no_verdict_and_no_worker(
    fleet: StartFleet, client: Client, stored_picture: str, valkey: Valkey, report: Report
) -> None:
    """Each time under load; each check has one verdict, from the same processes."""
    workers, faults, kills = fleet(2), Faults(valkey.url), 6
    checks = submit(client, [stored_picture], count=CHECKS * SCALE)
    pids = workers.pids()
    for number in range(kills):
        wait_for_share(client, checks, 0.8 * (number + 0.5) / kills)
        faults.record()
        valkey.kill()
        time.sleep(0.5)  # long enough for every client to notice
        valkey.start()
    outcome = wait_for_all(client, workers, checks, seconds=90 * SCALE, supervise=False, submit_again=True)
    report.add(
        f"Valkey killed and started again, {kills} times",
        "exactly one verdict each; no worker stays down or hangs"
        + (f" ({outcome.submitted_again} submitted again)" if outcome.submitted_again else ""),
        checks=len(checks),
        answered=len(outcome.events),
        doubled=outcome.doubled,
        delay_seconds=faults.worst_delay_seconds(outcome),
        delay_since="after the kill",
    )
    assert outcome.once_each
    assert workers.pids() == pids


def test_connections_cut_five_times_lose_no_verdict_and_publish_none_twice(
    fleet: StartFleet, client: Client, stored_picture: str, valkey: Valkey, report: Report
) -> None:
    """Each time the broker closes every connection; running checks are redelivered and answered once."""
    workers, faults, rounds = fleet(2), Faults(valkey.url), 5
    checks = submit(client, [stored_picture], count=CHECKS * SCALE)
    pids = workers.pids()
    with redis.Redis.from_url(valkey.url) as admin:
        for number in range(rounds):
            wait_for_share(client, checks, 0.8 * (number + 0.5) / rounds)
            faults.record()
            admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    outcome = wait_for_all(client, workers, checks, seconds=90 * SCALE, supervise=False)
    report.add(
        f"`CLIENT KILL` of all connections, {rounds} rounds",
        "exactly one verdict each",
        checks=len(checks),
        answered=len(outcome.events),
        doubled=outcome.doubled,
        delay_seconds=faults.worst_delay_seconds(outcome),
        delay_since="after the cut",
    )
    assert outcome.once_each
    assert workers.pids() == pids


def test_workers_shut_down_in_turn_lose_no_check_and_start_none_twice(
    fleet: StartFleet, client: Client, stored_picture: str, valkey: Valkey, report: Report
) -> None:
    """A rolling restart under load: each worker exits with status 0 within the grace period.

    Finished checks are acknowledged and others requeued before the end, so that none waits for the
    visibility timeout of ten minutes.
    """
    workers, longest = fleet(2, **LONG), 0.0
    checks = submit(client, [stored_picture], count=CHECKS * SCALE)
    stops = 2 * min(SCALE, 10)
    for number in range(stops):
        wait_for_share(client, checks, 0.7 * (number + 0.5) / stops)
        worker = workers.workers[number % 2]
        began = time.monotonic()
        assert worker.stop() == 0
        longest = max(longest, time.monotonic() - began)
        worker.start()
    outcome = wait_for_all(client, workers, checks, seconds=60 * SCALE)
    report.add(
        f"SIGTERM to each worker in turn, {stops} times",
        "nothing started twice, nothing lost, each stops within 30 seconds",
        checks=len(checks),
        answered=len(outcome.events),
        doubled=outcome.doubled,
        delay_seconds=longest,
        delay_since="from SIGTERM to the end",
    )
    assert outcome.once_each
    assert workers.deaths == []
    with redis.Redis.from_url(valkey.url) as broker:
        counts = {broker.hget(f"attempts:{name}", "count") for name in checks}
    assert counts == {b"1"}


@pytest.mark.parametrize("broker", ["deployed", "embedded"])
def test_a_broker_that_is_killed_while_its_disk_is_busy_has_every_check_that_it_confirmed(
    broker: str, tmp_path: Path
) -> None:
    """With `appendfsync everysec` it would confirm what waits in its own memory for the disk."""
    deployed = re.findall(r"--(append\w+) (\w+)", SERVE.read_text(encoding="utf-8"))
    options = [text for name, value in deployed for text in (f"--{name}", value)]
    valkey = Valkey(tmp_path / "valkey", options=options if broker == "deployed" else [])
    valkey.start()
    with Client(Settings(redis_url=valkey.url)) as client:
        for confirmed in range(1, 4):
            with redis.Redis.from_url(valkey.url) as admin:
                admin.set("large", bytes(8 << 20))  # the disk is busy with it for some milliseconds
            client.submit("uploads", "a.jpg")
            valkey.kill()
            valkey.start()
            assert waiting(client) == confirmed
    valkey.kill()
