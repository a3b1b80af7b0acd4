"""What a check costs: the whole path beside the plainest Celery task and beside bare Celery."""

import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import redis

from tests.benchmarks.pictures import jpeg
from tests.benchmarks.workers import (
    QUEUE,
    STREAM,
    BenchmarkFailedError,
    Kind,
    Workers,
    database_url,
    running,
)
from worker.contract.envelope import encode
from worker.contract.messages import ImageCheck
from worker.embedded.services import EmbeddedServices

KINDS: tuple[Kind, ...] = ("path", "plain", "bare")
ROUND_SECONDS = 600.0

# What a worker does once, with its first checks, is no part of a round.
_WARM_UP_CHECKS = 64


@dataclass(frozen=True)
class Cost:
    """What checks of one picture cost in one kind of worker, by round."""

    picture: str
    processes: int
    kind: Kind
    checks_per_second: tuple[float, ...]
    #: Milliseconds of processor time for a check in the workers, and in Valkey.
    worker_ms: tuple[float, ...]
    broker_ms: tuple[float, ...]
    #: The most memory of a worker process.
    peak_bytes: int

    @property
    def rate(self) -> float:
        """The median of checks per second."""
        return statistics.median(self.checks_per_second)

    @property
    def cpu_ms(self) -> float:
        """The median of the workers' milliseconds for a check."""
        return statistics.median(self.worker_ms)

    def rate_to(self, other: "Cost") -> float:
        """Return the median over the rounds of this rate to another's."""
        pairs = zip(self.checks_per_second, other.checks_per_second, strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)


def costs(
    services: EmbeddedServices, picture: str, *, processes: int, checks: int, rounds: int
) -> list[Cost]:
    """Measure every kind of worker with checks of one picture, taking turns round by round.

    All messages are enqueued at once; a round ends with the last event, or with the last message where no
    task publishes one. Raises `BenchmarkFailedError`.
    """
    key = f"{picture}.jpg"
    services.seaweedfs.client().put_object(Bucket=services.bucket, Key=key, Body=jpeg(picture))
    found: dict[Kind, list[tuple[float, float, float]]] = {kind: [] for kind in KINDS}
    with ExitStack() as stack:
        fleets: dict[Kind, Workers] = {}
        servers: dict[Kind, redis.Redis] = {}
        for number, kind in enumerate(KINDS):
            server = redis.Redis.from_url(database_url(services, number))
            servers[kind] = stack.enter_context(closing(server))
            server.flushdb()
            fleets[kind] = stack.enter_context(running(kind, services, count=processes, database=number))

        def measured(kind: Kind, count: int) -> tuple[float, float, float]:
            entries = _entries(kind, services.bucket, key, count)
            return timed_round(servers[kind], fleets[kind], entries, publishes=kind != "bare")

        for kind in KINDS:
            measured(kind, min(checks, _WARM_UP_CHECKS * processes))
        for number in range(rounds):
            for kind in KINDS if number % 2 == 0 else reversed(KINDS):
                found[kind].append(measured(kind, checks))
        return [
            Cost(picture, processes, kind, *_columns(found[kind]), fleets[kind].peak_bytes) for kind in KINDS
        ]


def path_entries(bucket: str, key: str, count: int) -> list[bytes]:
    """Return messages of the whole path, each a check of one object."""
    return _entries("path", bucket, key, count)


def _entries(kind: Kind, bucket: str, key: str, count: int) -> list[bytes]:
    checks = (ImageCheck(bucket=bucket, key=key).model_dump(mode="json") for _ in range(count))
    return [encode(check if kind != "bare" else {}, QUEUE) for check in checks]


def timed_round(
    server: redis.Redis, fleet: Workers, entries: list[bytes], *, publishes: bool = True
) -> tuple[float, float, float]:
    """Return checks per second, and milliseconds of processor time for a check in workers and broker."""
    server.delete(STREAM)
    spent, broker_spent, began = fleet.cpu_seconds, _broker_seconds(server), time.perf_counter()
    server.lpush(QUEUE, *entries)
    while server.llen(QUEUE) or server.hlen("unacked") or (publishes and server.xlen(STREAM) < len(entries)):
        fleet.require_alive()
        if time.perf_counter() - began > ROUND_SECONDS:
            raise BenchmarkFailedError(f"The workers did not finish.\n{fleet.processes[0].tail()}")
        time.sleep(0.02)
    seconds = time.perf_counter() - began
    milliseconds = [
        (after - before) * 1000 / len(entries)
        for before, after in ((spent, fleet.cpu_seconds), (broker_spent, _broker_seconds(server)))
    ]
    return len(entries) / seconds, milliseconds[0], milliseconds[1]


def _broker_seconds(server: redis.Redis) -> float:
    spent = server.info("cpu")
    return float(spent["used_cpu_sys"]) + float(spent["used_cpu_user"])


def _columns(
    rows: Sequence[tuple[float, float, float]],
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    rates, workers, brokers = zip(*rows, strict=True)
    return rates, workers, brokers
