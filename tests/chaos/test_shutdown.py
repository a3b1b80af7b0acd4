"""Shutdown: a worker requeues its unacknowledged checks at once, and none is started twice."""

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from tests.chaos.conftest import StartFleet
from tests.conftest import PATIENCE
from worker.broker import keys
from worker.broker.app import create_app
from worker.client import Client
from worker.contract.messages import CHECK_IMAGE, QUEUES, ImageCheck
from worker.embedded.valkey import Valkey

IN_FLIGHT = 8

# Within a test the broker delivers no unacknowledged check again: what is queued was requeued by the worker.
LONG = {
    "DNF_VISIBILITY_TIMEOUT_SECONDS": "600",
    "DNF_CHECK_DEADLINE_SECONDS": "500",
    "DNF_SHUTDOWN_GRACE_SECONDS": "300",
}


class Broker:
    """Counts the checks in a broker."""

    def __init__(self, url: str) -> None:
        self.redis = redis.Redis.from_url(url)

    @property
    def queued(self) -> int:
        """The number of checks in the queues."""
        return sum(int(self.redis.llen(name)) for name in QUEUES)  # type: ignore[arg-type]

    @property
    def unacknowledged(self) -> int:
        """The number of checks that were taken and not acknowledged."""
        return int(self.redis.hlen("unacked"))  # type: ignore[arg-type]

    def attempts(self, check_ids: list[str]) -> Counter[str]:
        """Return the number of attempts at each check."""
        counts = {check_id: self.redis.hget(keys.attempts(check_id), "count") for check_id in check_ids}
        return Counter({check_id: int(count) for check_id, count in counts.items() if count})


@pytest.fixture
def broker(valkey: Valkey) -> Iterator[Broker]:
    """Provide the counts of the broker."""
    broker = Broker(valkey.url)
    yield broker
    broker.redis.close()


def _submit(client: Client, key: str, count: int) -> list[str]:
    return [client.submit(client.settings.upload_bucket, key) for _ in range(count)]


def _verdicts(client: Client) -> Counter[str]:
    return Counter(event.check_id for event in client.events(follow=False))


def test_a_worker_requeues_checks_that_have_not_started_at_once_and_finishes_the_others(
    fleet: StartFleet, client: Client, stored_picture: str, broker: Broker, wait_until: Callable[..., None]
) -> None:
    """Checks that wait in its memory for their ETA are on the queue again while others still run."""
    running = _submit(client, stored_picture, 4)
    app = create_app(client.settings.model_copy(update={"visibility_timeout_seconds": 600}))
    for _ in range(5):
        later = ImageCheck(bucket=client.settings.upload_bucket, key=stored_picture)
        app.send_task(CHECK_IMAGE, args=[later.model_dump(mode="json")], queue="image-checks", countdown=300)
    (worker,) = fleet(1, NULL_BATCH_SECONDS=str(3 * PATIENCE), **LONG).workers
    wait_until(lambda: len(broker.attempts(running)) == 4 and broker.queued == 0, "four have started")
    worker.process.send_signal(signal.SIGTERM)
    wait_until(lambda: broker.queued == 5, "the others are requeued")
    assert broker.unacknowledged == 4
    assert worker.process.poll() is None
    assert worker.process.wait(60 * PATIENCE) == 0
    assert _verdicts(client) == Counter(running)
    assert (broker.queued, broker.unacknowledged) == (5, 0)
    assert broker.attempts(running) == Counter(running)


@pytest.mark.parametrize(
    ("signals", "grace_seconds", "reason"),
    [
        ([signal.SIGTERM, signal.SIGTERM], 300, "SIGTERM was received as well"),
        ([signal.SIGQUIT], 300, "SIGQUIT was received"),
        ([signal.SIGTERM], 1, "the grace period of 1 seconds is over"),
    ],
)
def test_a_worker_that_must_end_early_requeues_every_check(  # noqa: PLR0917 - fixtures
    fleet: StartFleet,
    client: Client,
    broker: Broker,
    wait_until: Callable[..., None],
    stored_picture: str,
    signals: list[signal.Signals],
    grace_seconds: int,
    reason: str,
) -> None:
    """After a second SIGTERM, SIGQUIT or the grace period, during batches of ten minutes."""
    check_ids = _submit(client, stored_picture, 30)
    variables = {**LONG, "DNF_SHUTDOWN_GRACE_SECONDS": str(grace_seconds)}
    (worker,) = fleet(1, NULL_BATCH_SECONDS="600", **variables).workers
    wait_until(lambda: len(broker.attempts(check_ids)) == IN_FLIGHT, "every thread has started a check")
    for number in signals:
        worker.process.send_signal(number)
        # Two signals of a kind at once would be one.
        worker.wait_for_event("checks_requeued")
    began = time.monotonic()
    assert worker.process.wait(60 * PATIENCE) == 0
    assert time.monotonic() - began < (grace_seconds if grace_seconds == 1 else 0) + 10 * PATIENCE
    assert (broker.queued, broker.unacknowledged) == (30, 0)
    (line,) = worker.wait_for_event("worker_stopped_early")
    assert (line["reason"], line["requeued"]) == (reason, IN_FLIGHT)


def test_a_worker_that_shuts_down_acknowledges_each_check_as_it_ends(
    fleet: StartFleet, client: Client, stored_picture: str, broker: Broker, wait_until: Callable[..., None]
) -> None:
    """Of eight checks that run in turn the first is acknowledged; the others can still be requeued."""
    check_ids = _submit(client, stored_picture, IN_FLIGHT)
    variables = {**LONG, "DNF_BATCH_SIZE": "1", "NULL_BATCH_SECONDS": str(2 * PATIENCE)}
    (worker,) = fleet(1, **variables).workers
    wait_until(lambda: len(broker.attempts(check_ids)) == IN_FLIGHT, "all have started")
    done = len(_verdicts(client))
    worker.process.send_signal(signal.SIGTERM)
    worker.wait_for_event("checks_requeued", requeued=0)
    wait_until(
        lambda: done < len(_verdicts(client)) == IN_FLIGHT - broker.unacknowledged, "one more is acknowledged"
    )
    assert worker.process.poll() is None
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(60 * PATIENCE) == 0
    assert (broker.queued, broker.unacknowledged) == (IN_FLIGHT - len(_verdicts(client)), 0)
    (line,) = worker.wait_for_event("worker_stopped_early", fault=None)
    assert line["requeued"] == broker.queued


def test_a_worker_that_must_end_at_once_under_load_leaves_no_check_unacknowledged(
    fleet: StartFleet, client: Client, stored_picture: str, broker: Broker
) -> None:
    """While it takes, judges and publishes checks; none waits for the visibility timeout."""
    check_ids = _submit(client, stored_picture, 120)
    (worker,) = fleet(1, NULL_BATCH_SECONDS="0.05", **LONG).workers
    worker.wait_for_event("image_checked", count=20)
    worker.process.send_signal(signal.SIGQUIT)
    assert worker.process.wait(30 * PATIENCE) == 0
    assert broker.unacknowledged == 0
    assert broker.queued >= len(check_ids) - len(_verdicts(client)) > 0
    (other,) = fleet(1, NULL_BATCH_SECONDS="0.05", **LONG).workers
    client.wait_for(*check_ids, timeout_seconds=60 * PATIENCE)
    assert _verdicts(client) == Counter(check_ids)
    assert other.process.poll() is None


def test_a_worker_that_is_out_of_time_with_its_last_check_ends_once(  # noqa: PLR0917 - fixtures
    fleet: StartFleet,
    client: Client,
    stored_picture: str,
    broker: Broker,
    wait_until: Callable[..., None],
    tmp_path: Path,
) -> None:
    """Beside the thread that ends it early the main thread neither ends it nor finalises the interpreter."""
    check_ids = _submit(client, stored_picture, 4)
    exit_file = tmp_path / "exit"
    (worker,) = fleet(1, NULL_BATCH_SECONDS="0.5", NULL_EXIT_FILE=str(exit_file), **LONG).workers
    wait_until(lambda: len(broker.attempts(check_ids)) > 0, "a check has started")
    worker.process.send_signal(signal.SIGQUIT)
    worker.wait_for_event("exit_called")
    worker.wait_for_event("worker_stopped")
    exit_file.touch()
    assert worker.process.wait(30 * PATIENCE) == 0
    assert not [line for line in worker.log_lines() if line["event"] == "interpreter_finalised"]
    assert len(worker.wait_for_event("exit_called")) == 1
