"""Workers with a null detector, restarted by the test."""

import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.conftest import NULL_WORKER, RunningWorker


class Fleet:
    """Workers with a null detector; `supervise` restarts those that ended."""

    def __init__(
        self, folder: Path, environment: Mapping[str, str], size: int, module: str = NULL_WORKER
    ) -> None:
        self.environment = dict(environment)
        self.deaths: list[int] = []
        self.workers = [
            RunningWorker(self.environment, folder / f"worker-{number}-{id(self)}.log", module)
            for number in range(size)
        ]

    def start(self) -> None:
        """Start every worker; return when all consume."""
        for worker in self.workers:
            worker.launch()
        for worker in self.workers:
            worker.wait_ready()

    def kill(self, number: int) -> None:
        """Kill a worker (SIGKILL), like a crash."""
        self.workers[number % len(self.workers)].kill()

    def restart(self, number: int) -> None:
        """Start a killed worker again."""
        self.workers[number % len(self.workers)].start()

    def supervise(self) -> None:
        """Restart the workers that ended, and record their exit statuses in `deaths`."""
        for worker in self.workers:
            if worker.process.poll() is not None:
                self.deaths.append(worker.process.returncode)
                worker.start()

    def pids(self) -> list[int]:
        """Return the process ids of the running workers."""
        return [worker.process.pid for worker in self.workers if worker.process.poll() is None]

    def stop(self) -> float:
        """Shut every worker down, kill those that do not end; return the seconds that it took."""
        began = time.monotonic()
        for worker in self.workers:
            if worker.guarded is not None:
                worker.guarded.signal(signal.SIGTERM)
        for worker in self.workers:
            if worker.guarded is not None:
                worker.guarded.stop(grace_seconds=20.0)
        return time.monotonic() - began

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the log lines of an event of every worker."""
        return [line for worker in self.workers for line in worker.log_lines() if line.get("event") == name]
