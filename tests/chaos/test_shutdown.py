"""Workers that are told to stop: what they hold goes back to the queue at once, and nothing is done twice."""

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import redis

from tests.chaos.conftest import StartFleet
from tests.conftest import PATIENCE
from worker.broker.app import create_app
from worker.client import Client
from worker.contract.messages import CHECK_IMAGE, QUEUES, ImageCheck
from worker.embedded.valkey import Valkey

IN_FLIGHT = 8

# What went back must be there long before the broker itself would deliver it again.
LONG = {
    "DNF_VISIBILITY_TIMEOUT_SECONDS": "600",
    "DNF_CHECK_DEADLINE_SECONDS": "500",
    "DNF_SHUTDOWN_GRACE_SECONDS": "300",
}


class Broker:
    """Looks at what waits in a broker and what was taken from it."""

    def __init__(self, url: str) -> None:
        self.redis = redis.Redis.from_url(url)

    @property
    def waiting(self) -> int:
        """How many checks wait in the queues."""
        return sum(int(self.redis.llen(name)) for name in QUEUES)  # type: ignore[arg-type]

    @property
    def taken(self) -> int:
        """How many checks a worker has taken and not acknowledged."""
        return int(self.redis.hlen("unacked"))  # type: ignore[arg-type]

    def begun(self, check_ids: list[str]) -> Counter[str]:
        """Return how often each check was begun."""
        counts = {check_id: self.redis.hget(f"attempts:{check_id}", "count") for check_id in check_ids}
        return Counter({check_id: int(count) for check_id, count in counts.items() if count})


@pytest.fixture
def broker(valkey: Valkey) -> Iterator[Broker]:
    """Provide a look at the broker."""
    broker = Broker(valkey.url)
    yield broker
    broker.redis.close()


def _submit(client: Client, key: str, count: int) -> list[str]:
    return [client.submit(client.settings.upload_bucket, key) for _ in range(count)]


def _verdicts(client: Client) -> Counter[str]:
    return Counter(event.check_id for event in client.events(follow=False))


def test_a_worker_that_is_told_to_stop_returns_what_it_has_not_begun_at_once_and_finishes_the_rest(
    fleet: StartFleet, client: Client, stored_picture: str, broker: Broker, wait_until: Callable[..., None]
) -> None:
    """Checks that wait for their time in its memory are on the queue again while others still run."""
    running = _submit(client, stored_picture, 4)
    app = create_app(client.settings.model_copy(update={"visibility_timeout_seconds": 600}))
    for _ in range(5):
        later = ImageCheck(bucket=client.settings.upload_bucket, key=stored_picture)
        app.send_task(CHECK_IMAGE, args=[later.model_dump(mode="json")], queue="image-checks", countdown=300)
    (worker,) = fleet(1, NULL_BATCH_SECONDS=str(4 * PATIENCE), **LONG).workers
    wait_until(lambda: len(broker.begun(running)) == 4 and broker.waiting == 0, "all are taken, four begun")
    worker.process.send_signal(signal.SIGTERM)
    wait_until(lambda: broker.waiting == 5, "what was not begun is back")
    assert broker.taken == 4
    assert worker.process.poll() is None
    assert worker.process.wait(60 * PATIENCE) == 0
    assert _verdicts(client) == Counter(running)
    assert (broker.waiting, broker.taken) == (5, 0)
    assert broker.begun(running) == Counter(running)


@pytest.mark.parametrize(
    ("told", "grace_seconds", "why"),
    [
        ([signal.SIGTERM, signal.SIGTERM], 300, "SIGTERM was received as well"),
        ([signal.SIGQUIT], 300, "SIGQUIT was received"),
        ([signal.SIGTERM], 1, "the grace period of 1 seconds is over"),
    ],
)
def test_a_worker_that_may_not_finish_returns_everything_and_ends(  # noqa: PLR0917 - fixtures
    fleet: StartFleet,
    client: Client,
    broker: Broker,
    wait_until: Callable[..., None],
    stored_picture: str,
    told: list[signal.Signals],
    grace_seconds: int,
    why: str,
) -> None:
    """After a second SIGTERM, SIGQUIT or its time, amid batches of ten minutes: all checks wait again."""
    check_ids = _submit(client, stored_picture, 30)
    variables = {**LONG, "DNF_SHUTDOWN_GRACE_SECONDS": str(grace_seconds)}
    (worker,) = fleet(1, NULL_BATCH_SECONDS="600", **variables).workers
    wait_until(lambda: len(broker.begun(check_ids)) == IN_FLIGHT, "as many as it has threads are begun")
    for number in told:
        worker.process.send_signal(number)
        # Two of a kind at once would be one.
        worker.wait_for_event("checks_requeued")
    began = time.monotonic()
    assert worker.process.wait(60 * PATIENCE) == 0
    assert time.monotonic() - began < (grace_seconds if grace_seconds == 1 else 0) + 10 * PATIENCE
    assert (broker.waiting, broker.taken) == (30, 0)
    (line,) = worker.wait_for_event("worker_stopped_early")
    assert (line["reason"], line["requeued"]) == (why, IN_FLIGHT)


def test_a_worker_that_stops_acknowledges_each_check_as_it_ends(
    fleet: StartFleet, client: Client, stored_picture: str, broker: Broker, wait_until: Callable[..., None]
) -> None:
    """Of eight that are judged in turn the first ends and is settled; the others are left to be put back."""
    check_ids = _submit(client, stored_picture, IN_FLIGHT)
    variables = {**LONG, "DNF_BATCH_SIZE": "1", "NULL_BATCH_SECONDS": str(4 * PATIENCE)}
    (worker,) = fleet(1, **variables).workers
    wait_until(lambda: len(broker.begun(check_ids)) == IN_FLIGHT, "all are begun")
    done = len(_verdicts(client))
    worker.process.send_signal(signal.SIGTERM)
    worker.wait_for_event("checks_requeued", requeued=0)
    wait_until(lambda: done < len(_verdicts(client)) == IN_FLIGHT - broker.taken, "one more is settled")
    assert worker.process.poll() is None
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(60 * PATIENCE) == 0
    assert (broker.waiting, broker.taken) == (IN_FLIGHT - len(_verdicts(client)), 0)
    (line,) = worker.wait_for_event("worker_stopped_early", fault=None)
    assert line["requeued"] == broker.waiting


def test_a_worker_that_is_told_to_end_at_once_under_load_leaves_no_check_behind(
    fleet: StartFleet, client: Client, stored_picture: str, broker: Broker
) -> None:
    """Ended amid taking, judging and publishing, it leaves nothing to wait for the visibility timeout."""
    check_ids = _submit(client, stored_picture, 120)
    (worker,) = fleet(1, NULL_BATCH_SECONDS="0.05", **LONG).workers
    worker.wait_for_event("image_checked", count=20)
    worker.process.send_signal(signal.SIGQUIT)
    assert worker.process.wait(30 * PATIENCE) == 0
    assert broker.taken == 0
    assert broker.waiting >= len(check_ids) - len(_verdicts(client)) > 0
    (other,) = fleet(1, NULL_BATCH_SECONDS="0.05", **LONG).workers
    client.wait_for(*check_ids, timeout_seconds=60 * PATIENCE)
    assert _verdicts(client) == Counter(check_ids)
    assert other.process.poll() is None
