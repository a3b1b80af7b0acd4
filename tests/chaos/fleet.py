"""Worker processes under a supervisor, and the promise that every check has exactly one verdict."""

import signal
import time
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.conftest import PATIENCE, RunningWorker
from worker.client import Client
from worker.messages import QUEUES
from worker.settings import Settings


class Fleet:
    """Workers with a null detector, each started again when it ends, until the fleet is stopped."""

    def __init__(self, folder: Path, environment: Mapping[str, str], size: int) -> None:
        self.environment = dict(environment)
        self.deaths: list[int] = []
        self.workers = [
            RunningWorker(
                self.environment, folder / f"worker-{number}-{id(self)}.log", "tests.chaos.null_worker"
            )
            for number in range(size)
        ]

    def start(self) -> None:
        """Start every worker; return when all consume."""
        for worker in self.workers:
            worker.start()

    def kill(self, number: int) -> None:
        """Kill a worker as a crash would, and start it again."""
        self.workers[number % len(self.workers)].kill()
        self.workers[number % len(self.workers)].start()

    def supervise(self) -> None:
        """Start those again that ended, and note how each of them did."""
        for worker in self.workers:
            if worker.process.poll() is not None:
                self.deaths.append(worker.process.returncode)
                worker.start()

    def pids(self) -> list[int]:
        """Return the process ids of those that run."""
        return [worker.process.pid for worker in self.workers if worker.process.poll() is None]

    def stop(self) -> None:
        """Stop every worker in order; those that would not are killed."""
        for worker in self.workers:
            if worker.guarded is not None:
                worker.guarded.signal(signal.SIGTERM)
        for worker in self.workers:
            if worker.guarded is not None:
                worker.guarded.stop(grace_seconds=20.0)

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return every worker's log lines of an event."""
        return [line for worker in self.workers for line in worker.log_lines() if line.get("event") == name]


def settings_of(environment: Mapping[str, str]) -> Settings:
    """Return the settings that DNF_ variables give."""
    values: dict[str, Any] = {name.removeprefix("DNF_").lower(): value for name, value in environment.items()}
    return Settings(**values)


def wait_for_all(
    client: Client, fleet: Fleet, check_ids: Collection[str], *, seconds: float, supervise: bool = True
) -> Counter[str]:
    """Wait until every check has an event and no message is left; return how many events each has."""
    deadline = time.monotonic() + seconds * PATIENCE
    counted, read = Counter[str](), "0-0"
    with redis.Redis.from_url(client.settings.redis_url.get_secret_value()) as broker:
        while True:
            if supervise:
                fleet.supervise()
            # Counted before the events are read: nothing is in work then that could still add one.
            waiting = sum(int(broker.llen(name)) for name in QUEUES)  # type: ignore[arg-type]
            held = int(broker.hlen("unacked"))  # type: ignore[arg-type]
            for event in client.events(since=read, follow=False):
                counted[event.check_id] += 1
                read = event.entry_id
            if counted.keys() >= set(check_ids) and not waiting and not held:
                return counted
            if time.monotonic() > deadline:
                missing = len(set(check_ids) - counted.keys())
                pytest.fail(
                    f"after {seconds:.0f} seconds {missing} of {len(check_ids)} checks have no event;"
                    f" {waiting} wait, {held} are held\n" + fleet.workers[0].log.read_text()[-3000:]
                )
            time.sleep(0.2)
