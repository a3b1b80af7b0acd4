"""What it costs that the broker writes to its disk before it confirms."""

import os
import statistics
import time
from contextlib import closing
from dataclasses import dataclass

import redis

from tests.benchmarks.path import path_entries, timed_round
from tests.benchmarks.pictures import jpeg
from tests.benchmarks.workers import database_url, running
from worker.embedded.services import EmbeddedServices

POLICIES = ("always", "everysec", "no")

_PICTURE = "512"
_WARM_UP_CHECKS = 64
_WRITES = 100


@dataclass(frozen=True)
class Durability:
    """What checks cost with one `appendfsync` of the broker, by round."""

    policy: str
    processes: int
    checks_per_second: tuple[float, ...]
    #: Milliseconds of processor time for a check in the workers, and in Valkey.
    worker_ms: tuple[float, ...]
    broker_ms: tuple[float, ...]

    @property
    def rate(self) -> float:
        """The median of checks per second."""
        return statistics.median(self.checks_per_second)


def durability(services: EmbeddedServices, *, processes: int, checks: int, rounds: int) -> list[Durability]:
    """Measure the whole path with a null detector, the policies taking turns round by round on one server.

    Raises `BenchmarkFailedError`.
    """
    services.seaweedfs.client().put_object(Bucket=services.bucket, Key="p.jpg", Body=jpeg(_PICTURE))
    found: dict[str, list[tuple[float, float, float]]] = {policy: [] for policy in POLICIES}
    with (
        closing(redis.Redis.from_url(database_url(services, 0))) as server,
        running("path", services, count=processes, database=0) as fleet,
    ):
        timed_round(server, fleet, path_entries(services.bucket, "p.jpg", _WARM_UP_CHECKS * processes))
        for number in range(rounds):
            for policy in POLICIES if number % 2 == 0 else reversed(POLICIES):
                server.config_set("appendfsync", policy)
                entries = path_entries(services.bucket, "p.jpg", checks)
                found[policy].append(timed_round(server, fleet, entries))
    return [Durability(policy, processes, *zip(*rows, strict=True)) for policy, rows in found.items()]


def disk_milliseconds(services: EmbeddedServices) -> float:
    """Return the median time that the broker's disk takes to write four kilobytes."""
    file = os.open(services.folder / "written", os.O_CREAT | os.O_WRONLY)
    seconds = []
    for _ in range(_WRITES):
        os.write(file, bytes(4096))
        began = time.perf_counter()
        os.fdatasync(file)
        seconds.append(time.perf_counter() - began)
    os.close(file)
    return statistics.median(seconds) * 1000
