"""The probes of real workers: with a broker that is frozen or stopped, a model that hangs, and busy."""

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic

import pytest

from tests.chaos.conftest import StartFleet
from tests.chaos.proxy import FaultProxy
from tests.conftest import RunningWorker
from tests.scraping import Served
from worker.client import Client
from worker.embedded.startup import free_ports
from worker.embedded.valkey import Valkey

WaitUntil = Callable[..., None]


@pytest.fixture
def served() -> Served:
    """Provide the endpoints of the test's worker, on a port that is free."""
    return Served(free_ports(1)[0])


@pytest.fixture
def broker_proxy(valkey: Valkey) -> Iterator[FaultProxy]:
    """Provide a proxy before the broker."""
    with FaultProxy(valkey.port) as proxy:
        yield proxy


def test_a_broker_that_is_away_makes_a_worker_not_ready_and_never_dead(
    fleet: StartFleet, valkey: Valkey, broker_proxy: FaultProxy, served: Served, wait_until: WaitUntil
) -> None:
    """Frozen, killed, or with connections that went silent: ready again by itself, alive at every look."""
    url = f"redis://127.0.0.1:{broker_proxy.port}/0"
    workers = fleet(1, DNF_HTTP_PORT=str(served.port), DNF_REDIS_URL=url)
    wait_until(lambda: served.status("/readyz") == 200, "ready after the start")
    assert valkey.process is not None

    def alive_and(status: int, reason: str) -> bool:
        assert served.probe("/livez")[0] == 200, served.probe("/livez")
        answer, body = served.probe("/readyz")
        return answer == status and reason in body["reason"]

    valkey.process.signal(signal.SIGSTOP)
    wait_until(lambda: alive_and(503, "broker does not answer"), "not ready beside a frozen broker")
    valkey.process.signal(signal.SIGCONT)
    wait_until(lambda: alive_and(200, "taking checks"), "ready after the thaw", seconds=60)
    broker_proxy.freeze()
    wait_until(lambda: alive_and(503, ""), "not ready with frozen connections")
    wait_until(lambda: alive_and(200, "taking checks"), "ready over new connections", seconds=60)
    valkey.kill()
    wait_until(lambda: alive_and(503, "broker does not answer"), "not ready without a broker")
    valkey.start()
    wait_until(lambda: alive_and(200, "taking checks"), "ready after the broker's start", seconds=60)
    assert workers.deaths == []


def test_a_model_that_hangs_makes_a_worker_dead(
    fleet: StartFleet, client: Client, stored_picture: str, served: Served, wait_until: WaitUntil
) -> None:
    """After the deadline of a check, not before; the reason and the metric say for how long."""
    # The watchdog would end it before.
    workers = fleet(1, DNF_HTTP_PORT=str(served.port), NULL_HANGS="1", DNF_MODEL_STALL_SECONDS="600")
    client.submit(client.settings.upload_bucket, stored_picture)
    wait_until(lambda: served.probe("/livez")[1]["model_stalled_seconds"] > 0, "the model is at it")
    while served.status("/livez") == 200:
        last = monotonic()
    status, body = served.probe("/livez")
    assert status == 503
    assert body["model_stalled_seconds"] >= 5
    assert "model thread made no progress" in body["reason"]
    assert monotonic() - last < 5
    assert served.status("/readyz") == 503
    assert (served.figure("dnf_batcher_stalled_seconds") or 0) >= 5
    workers.workers[0].kill()  # it would not stop


def test_a_busy_worker_is_ready_and_one_that_stops_is_alive_until_its_last_check(
    fleet: StartFleet, client: Client, stored_picture: str, served: Served, wait_until: WaitUntil
) -> None:
    """With every place taken all probes say yes; after SIGTERM not ready at once, and alive to the end."""
    workers = fleet(1, DNF_HTTP_PORT=str(served.port), NULL_BATCH_SECONDS="1.5")
    wait_until(lambda: served.status("/readyz") == 200, "ready after the start")
    check_ids = [client.submit(client.settings.upload_bucket, stored_picture) for _ in range(24)]
    wait_until(lambda: served.figure("dnf_checks_in_flight") == 8, "all places are taken")
    answers = {served.status(path) for path in ("/livez", "/readyz", "/startupz") for _ in range(40)}
    assert answers == {200}
    workers.workers[0].process.terminate()
    wait_until(lambda: served.probe("/readyz")[1]["reason"] == "shutting down", "not ready at once")
    assert served.figure("dnf_checks_in_flight")
    assert served.status("/livez") == 200
    wait_until(lambda: workers.workers[0].process.poll() is not None, "the worker ended")
    assert workers.workers[0].process.returncode == 0
    workers.supervise()
    client.wait_for(*check_ids, timeout_seconds=240)


def test_the_endpoints_answer_while_the_model_loads(
    chaos_environment: dict[str, str], tmp_path: Path, served: Served, wait_until: WaitUntil
) -> None:
    """Alive and not started, with the reason; started once checks are taken."""
    environment = {**chaos_environment, "DNF_HTTP_PORT": str(served.port), "NULL_LOAD_SECONDS": "3"}
    worker = RunningWorker(environment, tmp_path / "slow.log", "tests.workers.null_worker")
    starting = threading.Thread(target=worker.start)
    starting.start()
    try:
        wait_until(lambda: served.probe("/startupz") == (503, served.probe("/startupz")[1]), "answers")
        assert served.probe("/startupz")[1]["reason"] == "loading the model"
        assert served.status("/livez") == 200
        assert served.status("/readyz") == 503
        wait_until(lambda: served.status("/startupz") == 200, "started")
        assert worker.log_lines()
    finally:
        starting.join()
        worker.stop()
