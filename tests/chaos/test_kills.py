"""Workers, broker and connections are killed under load."""

import time
from collections import Counter

import redis

from tests.chaos.conftest import SCALE, VISIBILITY_SECONDS, StartFleet
from tests.chaos.fleet import Fleet, wait_for_all
from tests.conftest import PATIENCE
from worker.client import Client
from worker.embedded import Valkey

# A check whose worker was killed comes again after the visibility timeout, at the next sweep, and runs alone.
SWEEP_SECONDS = 5


def _submit(client: Client, key: str, count: int) -> list[str]:
    return [client.submit(client.settings.upload_bucket, key) for _ in range(count)]


def _wait_for_share(fleet: Fleet, share: float, check_ids: list[str]) -> None:
    """Wait until a share of the checks is answered, so that what is killed is killed under load."""
    deadline = time.monotonic() + 60 * PATIENCE
    while len(fleet.events("image_checked")) < share * len(check_ids):
        assert time.monotonic() < deadline, "the workers do not work"
        time.sleep(0.05)


def test_killed_workers_lose_no_verdict_and_double_none(
    fleet: StartFleet, client: Client, stored_picture: str
) -> None:
    """Four times a worker of two is killed in the midst of its batches; each check has one verdict.

    None of them waits for longer than its share of the visibility timeout, the sweep and the load.
    """
    workers, kills = fleet(2), 4 * SCALE
    check_ids = _submit(client, stored_picture, 240 * SCALE)
    for number in range(kills):
        _wait_for_share(workers, 0.7 * (number + 1) / kills, check_ids)
        workers.kill(number)
    began = time.monotonic()
    counted = wait_for_all(client, workers, check_ids, seconds=90 * SCALE)
    assert counted == Counter(check_ids)
    assert workers.deaths == [], "a worker ended that nobody killed"
    delay = time.monotonic() - began
    assert delay < (30 * SCALE + 2 * VISIBILITY_SECONDS + SWEEP_SECONDS) * PATIENCE


def test_a_broker_that_is_killed_and_starts_again_loses_no_verdict_and_no_worker(
    fleet: StartFleet, client: Client, stored_picture: str, valkey: Valkey
) -> None:
    """Three times in the midst of the load; each check has one verdict, and the same processes gave them."""
    workers, kills = fleet(2), 3 if SCALE == 1 else 6
    check_ids = _submit(client, stored_picture, 240 * SCALE)
    pids = workers.pids()
    for number in range(kills):
        _wait_for_share(workers, 0.7 * (number + 1) / kills, check_ids)
        valkey.kill()
        time.sleep(0.5)  # an outage that everyone notices
        valkey.start()
    counted = wait_for_all(client, workers, check_ids, seconds=90 * SCALE, supervise=False)
    assert counted == Counter(check_ids)
    assert workers.pids() == pids


def test_connections_that_are_cut_double_no_verdict_and_lose_none(
    fleet: StartFleet, client: Client, stored_picture: str, valkey: Valkey
) -> None:
    """Five times every connection to the broker is cut; what runs is delivered again, and answered once."""
    workers = fleet(2)
    check_ids = _submit(client, stored_picture, 240 * SCALE)
    pids = workers.pids()
    with redis.Redis.from_url(valkey.url) as admin:
        for number in range(5):
            _wait_for_share(workers, 0.15 * (number + 1), check_ids)
            admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    counted = wait_for_all(client, workers, check_ids, seconds=90 * SCALE, supervise=False)
    assert counted == Counter(check_ids)
    assert workers.pids() == pids
