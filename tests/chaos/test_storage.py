"""An object store with errors, delays, cut replies and an outage."""

import time
from collections.abc import Iterator

import pytest

from tests.chaos.conftest import SCALE, StartFleet
from tests.chaos.outcome import submit, wait_for_all, wait_for_share
from tests.chaos.proxy import StoreProxy
from tests.chaos.report import Report
from tests.conftest import MakePicture, StoreObject
from worker.broker.dead_letters import DeadLetters
from worker.client import Client
from worker.embedded.services import EmbeddedServices

# The retries of a check, each within a quarter of the visibility timeout, must outlast the outage.
OUTAGE_SECONDS = 4 if SCALE == 1 else 30
VISIBILITY_SECONDS = 16 if SCALE == 1 else 120
LATENCY_SECONDS = 1 if SCALE == 1 else 2


@pytest.fixture
def store_proxy(services: EmbeddedServices) -> Iterator[StoreProxy]:
    """Provide a proxy in front of the object store."""
    with StoreProxy(int(services.s3_endpoint.rpartition(":")[2])) as proxy:
        yield proxy


@pytest.fixture
def large_picture(store_object: StoreObject, make_picture: MakePicture) -> str:
    """Return the key of a picture that is sent in several pieces."""
    body = make_picture(2, (480, 400))
    assert len(body) > 2 * 16_384
    store_object("chaos/large.jpg", body)
    return "chaos/large.jpg"


def test_no_upload_is_rejected_for_errors_delays_resets_and_an_outage_of_the_store(
    fleet: StartFleet, client: Client, large_picture: str, store_proxy: StoreProxy, report: Report
) -> None:
    """A fifth of the requests fail, replies are cut or late, then none comes; every check has a verdict."""
    workers = fleet(
        2,
        DNF_S3_ENDPOINT_URL=f"http://127.0.0.1:{store_proxy.port}",
        DNF_VISIBILITY_TIMEOUT_SECONDS=str(VISIBILITY_SECONDS),
        DNF_CHECK_DEADLINE_SECONDS=str(VISIBILITY_SECONDS - 4),
        NULL_BATCH_SECONDS="0.02",
    )
    store_proxy.error_share, store_proxy.cut_share = 0.2, 0.03
    checks = submit(client, [large_picture], count=300 * SCALE)
    wait_for_share(client, checks, 0.3)
    store_proxy.latency_seconds = LATENCY_SECONDS
    wait_for_share(client, checks, 0.3 + 0.1 / SCALE)
    store_proxy.latency_seconds = 0.0
    wait_for_share(client, checks, 0.5)
    store_proxy.down = True
    store_proxy.reset()
    time.sleep(OUTAGE_SECONDS)
    store_proxy.down = False
    recovered = time.time()
    outcome = wait_for_all(client, workers, checks, seconds=120 * SCALE, supervise=False)
    delay, verdicts = outcome.last_since(recovered)
    report.add(
        f"S3: 20 % errors ({store_proxy.errors}), responses cut off in the body ({store_proxy.cuts}),"
        f" {LATENCY_SECONDS} s delays, {OUTAGE_SECONDS} s outage",
        "all verdicts, no rejection by mistake",
        checks=len(checks),
        answered=len(outcome.events),
        doubled=outcome.doubled,
        delay_seconds=delay,
        delay_since=f"from the outage's end {verdicts}",
    )
    assert outcome.once_each
    assert not outcome.rejections
    assert store_proxy.errors > 0.1 * len(checks)
    assert store_proxy.cuts > 0.02 * len(checks)
    dead_letters = DeadLetters.connect(client.settings)
    assert list(dead_letters.read()) == []
    dead_letters.close()
