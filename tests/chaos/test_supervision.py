"""Worker processes under the supervisor of `dnf-worker run`."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.conftest import PATIENCE, RunningWorker
from worker.client import Client


class Supervised(RunningWorker):
    """A supervisor with workers that have a null detector."""

    def start(self) -> None:
        """Start it; return when all of its processes consume."""
        super().start()
        self.wait_for_event("processes_ready")

    @property
    def pids(self) -> list[int]:
        """The process ids of its workers, in the order in which they became ready."""
        return [int(line["worker"].rpartition(":")[2]) for line in self.wait_for_event("worker_ready")]


class StartSupervised(Protocol):
    """Starts supervisors; all of them end with the test."""

    def __call__(self, **variables: str) -> Supervised:
        """Return a supervisor whose processes consume, with variables on top of the test's own."""


@pytest.fixture
def supervised(chaos_environment: Mapping[str, str], tmp_path: Path) -> Iterator[StartSupervised]:
    """Provide a function that starts supervisors."""
    started: list[Supervised] = []

    def start(**variables: str) -> Supervised:
        # Debug level names each process that is started.
        own = {"NULL_SUPERVISED": "1", "DNF_LOG_LEVEL": "DEBUG"}
        environment = {**chaos_environment, **own, **variables}
        started.append(
            Supervised(environment, tmp_path / f"supervisor-{len(started)}.log", "tests.workers.null_worker")
        )
        started[-1].start()
        return started[-1]

    yield start
    for each in started:
        if each.guarded is not None:
            each.guarded.stop(grace_seconds=30.0)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # One that nobody has waited for yet is dead, too.
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def _order(worker: RunningWorker, *events: str) -> list[str]:
    return [line["event"] for line in worker.log_lines() if line.get("event") in events]


def test_each_gpu_has_a_process_of_its_own_and_all_of_them_judge(
    supervised: StartSupervised, client: Client, stored_picture: str
) -> None:
    """Two visible GPUs make two processes, ready when both are; SIGTERM ends both in order, status 0."""
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
    assert not any(map(_lives, pids))


def test_a_process_that_ends_by_fault_is_started_again_and_no_check_is_lost(
    supervised: StartSupervised, client: Client, stored_picture: str, wait_until: Callable[..., None]
) -> None:
    """One of two is killed under load: the other goes on, a new one takes its place, all have verdicts."""
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
    assert _lives(other)
    wait_until(lambda: _lives(third), "the new one lives")


def test_a_process_that_ends_again_and_again_stops_all(supervised: StartSupervised) -> None:
    """Over the limit, the supervisor says so, stops the others in order and ends with status 1."""
    worker = supervised(DNF_PROCESSES="2", DNF_RESTART_LIMIT="1")
    victims = worker.pids
    for kills in (1, 2):
        place = {line["pid"]: line["process"] for line in worker.wait_for_event("process_started")}
        victim = [pid for pid, number in place.items() if number == 0][-1]
        os.kill(victim, signal.SIGKILL)
        if kills == 1:
            worker.wait_for_event("processes_ready", count=2)
    assert worker.process.wait(60 * PATIENCE) == 1
    (line,) = worker.wait_for_event("restart_limit_reached")
    assert (line["process"], line["failures"]) == (0, 2)
    assert len(worker.wait_for_event("worker_stopped", status=0)) == 1
    assert not any(map(_lives, victims))


def test_no_worker_outlives_its_supervisor(
    supervised: StartSupervised, wait_until: Callable[..., None]
) -> None:
    """Killed alone, it leaves nobody behind."""
    worker = supervised(DNF_PROCESSES="2")
    pids = worker.pids
    assert all(map(_lives, pids))
    worker.process.kill()
    try:
        wait_until(lambda: not any(map(_lives, pids)), "the workers are gone")
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_a_second_signal_to_the_supervisor_ends_its_workers_at_once(
    supervised: StartSupervised, client: Client, stored_picture: str, wait_until: Callable[..., None]
) -> None:
    """Amid batches of ten minutes, and nothing is left in the hands of a dead process."""
    worker = supervised(
        DNF_PROCESSES="2",
        NULL_BATCH_SECONDS="600",
        DNF_VISIBILITY_TIMEOUT_SECONDS="600",
        DNF_CHECK_DEADLINE_SECONDS="500",
    )
    for _ in range(30):
        client.submit(client.settings.upload_bucket, stored_picture)
    redis: Any = client._redis  # noqa: SLF001 - a look at the broker
    wait_until(lambda: redis.hlen("unacked") == 16, "both have as many as they take")
    worker.process.send_signal(signal.SIGTERM)
    worker.wait_for_event("checks_requeued", count=2)
    worker.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert worker.process.wait(60 * PATIENCE) == 0
    assert time.monotonic() - began < 10 * PATIENCE
    assert (redis.hlen("unacked"), redis.llen("image-checks")) == (0, 30)
