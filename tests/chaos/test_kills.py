"""Workers, broker and connections are killed under load."""

import time

import redis

from tests.chaos.conftest import SCALE, VISIBILITY_SECONDS, StartFleet
from tests.chaos.outcome import Faults, submit, wait_for_all, wait_for_share, waiting
from tests.chaos.report import Report
from tests.conftest import PATIENCE
from worker.broker import keys
from worker.client import Client
from worker.embedded.valkey import Valkey

# What was in flight comes again after the visibility timeout, at the next sweep; a sweep that was killed
# holds back those of the others until its lock ends. It runs alone then, behind what runs at that moment.
SWEEP_SECONDS, SWEEP_LOCK_SECONDS, RUN_SECONDS = 5, 10, 5
BOUND_SECONDS = VISIBILITY_SECONDS + SWEEP_SECONDS + SWEEP_LOCK_SECONDS + RUN_SECONDS

CHECKS = 240

# What a stop leaves behind does not come again within a test.
LONG = {"DNF_VISIBILITY_TIMEOUT_SECONDS": "600", "DNF_CHECK_DEADLINE_SECONDS": "500"}


def test_killed_workers_lose_no_verdict_and_double_none(
    fleet: StartFleet, client: Client, stored_picture: str, valkey: Valkey, report: Report
) -> None:
    """Every few seconds a worker of two is killed in the midst of its batches; each check has one verdict.

    None of those that it had in flight waits for longer than the visibility timeout, the sweep and its run.
    """
    # Slow, so that there is load for most of the kills, and quick enough for all that comes back to be alone.
    workers, faults = fleet(2, NULL_BATCH_SECONDS="0.3"), Faults(valkey.url)
    checks, most, kills = submit(client, [stored_picture], count=CHECKS * SCALE), 4 * SCALE, 0
    while kills < most and waiting(client):
        wait_for_share(client, checks, 0.8 * (kills + 0.5) / most)
        workers.kill(kills)
        faults.note()
        workers.restart(kills)
        kills += 1
    assert kills >= 2, "there was no time to kill both workers"
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
    assert workers.deaths == [], "a worker ended that nobody killed"
    assert delay < BOUND_SECONDS * PATIENCE


def test_checks_that_cannot_be_alone_in_time_are_answered_before_the_queue_behind_them(
    fleet: StartFleet, client: Client, stored_picture: str, valkey: Valkey
) -> None:
    """A process was lost at six, so that each runs alone, and the time of one is enough for four of them."""
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
        DNF_CHECK_DEADLINE_SECONDS="3.5",
        NULL_BATCH_SECONDS="1",
    )
    outcome = wait_for_all(client, workers, isolated | behind, seconds=90, supervise=False)
    assert outcome.once_each
    assert workers.events("check_retried"), "all of them were alone in time"
    order = sorted(outcome.answered_at, key=lambda name: outcome.answered_at[name])
    # A thread that is free takes a check of the queue, which may have its turn between two of them.
    assert isolated.keys() <= set(order[: 2 * threads])
    with redis.Redis.from_url(valkey.url) as broker:
        assert {broker.hget(keys.attempts(name), "count") for name in isolated} == {b"1"}


def test_a_broker_that_is_killed_six_times_loses_no_verdict_and_no_worker(
    fleet: StartFleet, client: Client, stored_picture: str, valkey: Valkey, report: Report
) -> None:
    """Each time in the midst of the load; each check has one verdict, and the same processes gave them."""
    workers, faults, kills = fleet(2), Faults(valkey.url), 6
    checks = submit(client, [stored_picture], count=CHECKS * SCALE)
    pids = workers.pids()
    for number in range(kills):
        wait_for_share(client, checks, 0.8 * (number + 0.5) / kills)
        faults.note()
        valkey.kill()
        time.sleep(0.5)  # an outage that everyone notices
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


def test_connections_that_are_cut_five_times_double_no_verdict_and_lose_none(
    fleet: StartFleet, client: Client, stored_picture: str, valkey: Valkey, report: Report
) -> None:
    """Every connection to the broker is cut; what runs is delivered again, and answered once."""
    workers, faults, rounds = fleet(2), Faults(valkey.url), 5
    checks = submit(client, [stored_picture], count=CHECKS * SCALE)
    pids = workers.pids()
    with redis.Redis.from_url(valkey.url) as admin:
        for number in range(rounds):
            wait_for_share(client, checks, 0.8 * (number + 0.5) / rounds)
            faults.note()
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


def test_workers_that_are_stopped_in_turn_lose_nothing_and_begin_nothing_twice(
    fleet: StartFleet, client: Client, stored_picture: str, valkey: Valkey, report: Report
) -> None:
    """A rolling restart under load: each worker ends with status 0 within the grace period.

    What is finished is acknowledged before the end, and what goes back has not begun; the broker, which
    would deliver again after ten minutes, has nothing left to do.
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
