"""The probes of real workers: with a frozen or killed broker, a hung model, under load, and at start-up."""

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic

import pytest

from tests.chaos.conftest import SHORT_TIMEOUTS, StartFleet
from tests.chaos.proxy import FaultProxy
from tests.conftest import NULL_WORKER, PATIENCE, RunningWorker
from tests.scraping import Served
from worker.client import Client
from worker.embedded.startup import free_ports
from worker.embedded.valkey import Valkey

WaitUntil = Callable[..., None]


@pytest.fixture
def served() -> Served:
    """Provide the endpoints of the test's worker, on a free port."""
    return Served(free_ports(1)[0])


@pytest.fixture
def broker_proxy(valkey: Valkey) -> Iterator[FaultProxy]:
    """Provide a proxy in front of the broker."""
    with FaultProxy(valkey.port) as proxy:
        yield proxy


def test_an_unreachable_broker_fails_readiness_and_never_liveness(
    fleet: StartFleet, valkey: Valkey, broker_proxy: FaultProxy, served: Served, wait_until: WaitUntil
) -> None:
    """Suspended, with frozen connections, or killed: the worker is ready again by itself and always alive."""
    url = f"redis://127.0.0.1:{broker_proxy.port}/0"
    workers = fleet(1, DNF_HTTP_PORT=str(served.port), DNF_REDIS_URL=url, **SHORT_TIMEOUTS)
    wait_until(lambda: served.status("/readyz") == 200, "ready after the start")
    assert valkey.process is not None

    def alive_and(status: int, reason: str) -> bool:
        assert served.probe("/livez")[0] == 200, served.probe("/livez")
        answer, body = served.probe("/readyz")
        return answer == status and reason in body["reason"]

    valkey.process.signal(signal.SIGSTOP)
    wait_until(lambda: alive_and(503, "broker does not answer"), "not ready with a suspended broker")
    valkey.process.signal(signal.SIGCONT)
    wait_until(lambda: alive_and(200, "taking checks"), "ready with a resumed broker", seconds=60)
    broker_proxy.freeze()
    wait_until(lambda: alive_and(503, ""), "not ready with frozen connections")
    wait_until(lambda: alive_and(200, "taking checks"), "ready over new connections", seconds=60)
    valkey.kill()
    wait_until(lambda: alive_and(503, "broker does not answer"), "not ready without a broker")
    valkey.start()
    wait_until(lambda: alive_and(200, "taking checks"), "ready after the broker's start", seconds=60)
    assert workers.deaths == []


def test_a_hung_model_fails_liveness(
    fleet: StartFleet, client: Client, stored_picture: str, served: Served, wait_until: WaitUntil
) -> None:
    """After the deadline of a check, not before; reason and metric have the seconds."""
    deadline = 2
    # The watchdog would end it earlier.
    workers = fleet(
        1,
        DNF_HTTP_PORT=str(served.port),
        NULL_HANGS="1",
        DNF_MODEL_STALL_SECONDS="600",
        DNF_CHECK_DEADLINE_SECONDS=str(deadline),
    )
    client.submit(client.settings.upload_bucket, stored_picture)
    wait_until(lambda: served.probe("/livez")[1]["model_stalled_seconds"] > 0, "the model runs")
    while served.status("/livez") == 200:
        last = monotonic()
    status, body = served.probe("/livez")
    assert status == 503
    assert body["model_stalled_seconds"] >= deadline
    assert "model thread made no progress" in body["reason"]
    assert monotonic() - last < 5
    assert served.status("/readyz") == 503
    assert (served.figure("dnf_batcher_stalled_seconds") or 0) >= deadline
    workers.workers[0].kill()  # it would not end


def test_a_busy_worker_is_ready_and_is_alive_until_its_last_check(
    fleet: StartFleet, client: Client, stored_picture: str, served: Served, wait_until: WaitUntil
) -> None:
    """With every thread busy all probes pass; after SIGTERM it is not ready at once, and alive to the end."""
    workers = fleet(1, DNF_HTTP_PORT=str(served.port), NULL_BATCH_SECONDS=str(0.5 * PATIENCE))
    wait_until(lambda: served.status("/readyz") == 200, "ready after the start")
    check_ids = [client.submit(client.settings.upload_bucket, stored_picture) for _ in range(20)]
    wait_until(lambda: served.figure("dnf_checks_in_flight") == 8, "all threads are busy")
    answers = {served.status(path) for path in ("/livez", "/readyz", "/startupz") for _ in range(10)}
    assert answers == {200}
    workers.workers[0].process.terminate()
    wait_until(lambda: served.probe("/readyz")[1]["reason"] == "shutting down", "not ready at once")
    assert served.figure("dnf_checks_in_flight")
    assert served.status("/livez") == 200
    wait_until(lambda: workers.workers[0].process.poll() is not None, "the worker ends")
    assert workers.workers[0].process.returncode == 0
    workers.supervise()
    client.wait_for(*check_ids, timeout_seconds=240)


def test_the_probes_answer_while_the_model_loads(
    chaos_environment: dict[str, str], tmp_path: Path, served: Served, wait_until: WaitUntil
) -> None:
    """The worker is alive and not started, with the reason, until it takes checks."""
    variables = {"DNF_HTTP_PORT": str(served.port), "NULL_LOAD_SECONDS": str(1.5 * PATIENCE)}
    worker = RunningWorker({**chaos_environment, **variables}, tmp_path / "slow.log", NULL_WORKER)
    starting = threading.Thread(target=worker.start)
    starting.start()
    try:
        wait_until(lambda: served.status("/startupz") == 503, "the probes answer")
        assert served.probe("/startupz")[1]["reason"] == "loading the model"
        assert served.status("/livez") == 200
        assert served.status("/readyz") == 503
        wait_until(lambda: served.status("/startupz") == 200, "started")
        assert worker.log_lines()
    finally:
        starting.join()
        worker.stop()
