"""Worker processes under the supervisor of `dnf-worker run`."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import pytest
import redis

from tests.conftest import NULL_WORKER, PATIENCE, RunningWorker
from worker.client import Client
from worker.embedded.valkey import Valkey


class Supervised(RunningWorker):
    """A supervisor with workers that have a null detector."""

    def start(self) -> None:
        """Start the supervisor; return when all of its workers consume."""
        super().start()
        self.wait_for_event("processes_ready")

    @property
    def pids(self) -> list[int]:
        """The process ids of its workers, in the order in which they became ready."""
        return [int(line["worker"].rpartition(":")[2]) for line in self.wait_for_event("worker_ready")]


class StartSupervised(Protocol):
    """Starts supervisors, which end with the test."""

    def __call__(self, **variables: str) -> Supervised:
        """Return a supervisor whose workers consume; `variables` take precedence over `chaos_environment`."""


@pytest.fixture
def supervised(chaos_environment: Mapping[str, str], tmp_path: Path) -> Iterator[StartSupervised]:
    """Provide a function that starts supervisors."""
    started: list[Supervised] = []

    def start(**variables: str) -> Supervised:
        # `process_started` is logged at the debug level.
        own = {"NULL_SUPERVISED": "1", "DNF_LOG_LEVEL": "DEBUG"}
        environment = {**chaos_environment, **own, **variables}
        started.append(Supervised(environment, tmp_path / f"supervisor-{len(started)}.log", NULL_WORKER))
        started[-1].start()
        return started[-1]

    yield start
    for each in started:
        if each.guarded is not None:
            each.guarded.stop(grace_seconds=30.0)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie is dead too.
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def _order(worker: RunningWorker, *events: str) -> list[str]:
    return [line["event"] for line in worker.log_lines() if line.get("event") in events]


def test_each_gpu_has_a_worker_process_of_its_own(
    supervised: StartSupervised, client: Client, stored_picture: str
) -> None:
    """Of two visible GPUs; both processes judge checks, and SIGTERM shuts both down with status 0."""
    worker = supervised(DNF_DEVICE="auto", CUDA_VISIBLE_DEVICES="GPU-a,GPU-b")
    assert _order(worker, "worker_ready", "processes_ready") == ["worker_ready"] * 2 + ["processes_ready"]
    assert {line["device"] for line in worker.wait_for_event("model_loaded")} == {"GPU-a", "GPU-b"}
    pids = worker.pids
    check_ids = [client.submit(client.settings.upload_bucket, stored_picture) for _ in range(60)]
    events = client.wait_for(*check_ids, timeout_seconds=60 * PATIENCE)
    workers = {event.envelope.data.worker for event in events.values()}
    assert {int(name.rpartition(":")[2]) for name in workers} == set(pids)
    assert worker.stop() == 0
    assert len(worker.wait_for_event("worker_stopped", status=0)) == 2
    assert not any(map(_alive, pids))


def test_a_killed_worker_process_is_restarted_and_no_check_is_lost(
    supervised: StartSupervised, client: Client, stored_picture: str, wait_until: Callable[..., None]
) -> None:
    """One of two is killed under load: the other goes on, a third is started, every check has a verdict."""
    worker = supervised(DNF_PROCESSES="2")
    killed, other = worker.pids
    check_ids = [client.submit(client.settings.upload_bucket, stored_picture) for _ in range(100)]
    worker.wait_for_event("image_checked", count=10)
    os.kill(killed, signal.SIGKILL)
    (ended,) = worker.wait_for_event("process_failed")
    assert ended["cause"] == "killed by SIGKILL"
    client.wait_for(*check_ids, timeout_seconds=90 * PATIENCE)
    assert Counter(event.check_id for event in client.events(follow=False)) == Counter(check_ids)
    worker.wait_for_event("processes_ready", count=2)
    third = worker.pids[2]
    assert third not in {killed, other}
    assert _alive(other)
    wait_until(lambda: _alive(third), "the third process is alive")


def test_a_worker_process_that_fails_repeatedly_ends_the_supervisor(supervised: StartSupervised) -> None:
    """Above the limit of restarts it logs that, shuts the others down and exits with status 1."""
    worker = supervised(DNF_PROCESSES="2", DNF_RESTART_LIMIT="1")
    victims = worker.pids
    for kills in (1, 2):
        numbers = {line["pid"]: line["process"] for line in worker.wait_for_event("process_started")}
        victim = [pid for pid, number in numbers.items() if number == 0][-1]
        os.kill(victim, signal.SIGKILL)
        if kills == 1:
            worker.wait_for_event("processes_ready", count=2)
    assert worker.process.wait(60 * PATIENCE) == 1
    (line,) = worker.wait_for_event("restart_limit_reached")
    assert (line["process"], line["failures"]) == (0, 2)
    assert len(worker.wait_for_event("worker_stopped", status=0)) == 1
    assert not any(map(_alive, victims))


def test_no_worker_process_outlives_its_supervisor(
    supervised: StartSupervised, wait_until: Callable[..., None]
) -> None:
    """Not even when the supervisor alone is killed."""
    worker = supervised(DNF_PROCESSES="2")
    pids = worker.pids
    assert all(map(_alive, pids))
    worker.process.kill()
    try:
        wait_until(lambda: not any(map(_alive, pids)), "the worker processes end")
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_a_second_signal_to_the_supervisor_ends_its_workers_at_once(
    supervised: StartSupervised,
    client: Client,
    stored_picture: str,
    valkey: Valkey,
    wait_until: Callable[..., None],
) -> None:
    """During batches of ten minutes; every check is requeued."""
    worker = supervised(
        DNF_PROCESSES="2",
        NULL_BATCH_SECONDS="600",
        DNF_VISIBILITY_TIMEOUT_SECONDS="600",
        DNF_CHECK_DEADLINE_SECONDS="500",
    )
    for _ in range(30):
        client.submit(client.settings.upload_bucket, stored_picture)
    with redis.Redis.from_url(valkey.url) as broker:
        wait_until(lambda: broker.hlen("unacked") == 16, "both take as many checks as they may")
        worker.process.send_signal(signal.SIGTERM)
        worker.wait_for_event("checks_requeued", count=2)
        worker.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert worker.process.wait(60 * PATIENCE) == 0
        assert time.monotonic() - began < 10 * PATIENCE
        assert (broker.hlen("unacked"), broker.llen("image-checks")) == (0, 30)
