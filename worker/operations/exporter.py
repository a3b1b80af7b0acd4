"""Metrics of queues, streams and the fleet, read from Redis for Prometheus and the autoscaler.

A scrape costs a handful of commands however long the queues are: lengths, the entry that is next in each
queue, and a sample of the unacknowledged checks.
"""

import base64
import json
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple, Self

import redis
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis.backoff import NoBackoff
from redis.retry import Retry

from worker.broker.connection import tls_options
from worker.broker.consumer_groups import MAX_GROUPS, ConsumerGroup, consumer_groups
from worker.broker.faults import MEMORY_LIMIT, connection_fault, intake_limits
from worker.broker.keys import UNACKED, UNACKED_INDEX, WORKERS_ALIVE
from worker.contract.envelope import MAX_ENTRY_BYTES
from worker.contract.messages import QUEUES
from worker.process.heartbeat import ALIVE_SECONDS, measured_rate
from worker.settings import Settings
from worker.telemetry.logs import get_logger
from worker.telemetry.metrics import Documented

log = get_logger(__name__)

#: Unacknowledged checks that are read to estimate the share of each queue.
SAMPLE_SIZE = 200
#: The throughput is measured over this window.
WINDOW_SECONDS = 60.0

# What one worker is expected to do before any has lived; a low one lets an autoscaler start early.
_UNKNOWN_RATE = 1.0
_TIMEOUT_SECONDS = 2.0
# Scrapes within this time share one snapshot.
_SNAPSHOT_SECONDS = 1.0

# KEYS: unacked, its index, the set of workers, then the lists of all queues in the order in which a worker
# polls them. ARGV: the longest entry to read, the sample size, seconds until a silent worker counts as dead.
_READ = """
local now = redis.call('TIME')
local lengths, oldest = {}, {}
for i = 4, #KEYS do
  lengths[i - 3] = redis.call('LLEN', KEYS[i])
  local entry = redis.call('LINDEX', KEYS[i], -1)
  oldest[i - 3] = (entry and #entry <= tonumber(ARGV[1])) and entry or ''
end
local ends = {}
local sample = redis.call('HRANDFIELD', KEYS[1], ARGV[2], 'WITHVALUES')
for i = 2, #sample, 2 do ends[i / 2] = string.sub(sample[i], -100) end
local taken = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2] or ''
local alive = redis.call('ZCOUNT', KEYS[3], tonumber(now[1]) - tonumber(ARGV[3]), '+inf')
local at = now[1] .. '.' .. string.format('%06d', now[2])
return {at, lengths, oldest, redis.call('HLEN', KEYS[1]), ends, taken, alive}
"""

# kombu appends this to the name of a queue's list for each priority; 0 has the bare name.
_PRIORITY_SUFFIXES = ("", "\x06\x163", "\x06\x166", "\x06\x169")


@dataclass(frozen=True)
class BrokerSnapshot:
    """The state of the broker at one moment; times are the server's, in seconds since 1970."""

    at: float
    #: Checks by queue.
    waiting: Mapping[str, int]
    #: Checks by queue, estimated from a sample.
    unacknowledged: Mapping[str, float]
    #: When the check that is next in its queue was submitted, by queue.
    oldest: Mapping[str, float]
    #: When the check that is unacknowledged for the longest time was taken.
    oldest_taken: float | None
    workers_alive: int
    #: What one worker measured at its start, on average over the living ones, else the last ones.
    pictures_per_second: float | None
    #: Events ever published on the stream.
    published: int
    stream_length: int
    groups: list[ConsumerGroup]
    dead_letters: int
    #: By limit at which workers stop taking checks: the share of it that is used.
    intake_limits: Mapping[str, float]

    @classmethod
    def read(cls, broker: redis.Redis, settings: Settings) -> Self:
        """Read the broker. Raises `redis.RedisError`."""
        lists = [queue + suffix for queue in QUEUES for suffix in _PRIORITY_SUFFIXES]
        keys = [UNACKED, UNACKED_INDEX, WORKERS_ALIVE, *lists]
        reply: Any = broker.eval(_READ, len(keys), *keys, MAX_ENTRY_BYTES, SAMPLE_SIZE, ALIVE_SECONDS)
        at, lengths, entries, unacknowledged, ends, oldest_taken, alive = reply
        waiting, oldest = dict.fromkeys(QUEUES, 0), dict[str, float]()
        for name, length, entry in zip(lists, lengths, entries, strict=True):
            queue = name.partition("\x06")[0]
            waiting[queue] += length
            if entry and queue not in oldest and (since := submitted_at(entry)) is not None:
                oldest[queue] = since
        stream: Any = (
            broker.xinfo_stream(settings.verdict_stream) if broker.exists(settings.verdict_stream) else {}
        )
        return cls(
            at=float(at),
            waiting=waiting,
            unacknowledged=_by_queue(unacknowledged, ends),
            oldest=oldest,
            oldest_taken=float(oldest_taken) if oldest_taken else None,
            workers_alive=alive,
            pictures_per_second=measured_rate(broker),
            published=int(stream.get("entries-added", stream.get("length", 0))),
            stream_length=int(stream.get("length", 0)),
            groups=consumer_groups(broker, settings.verdict_stream),
            dead_letters=int(broker.xlen(settings.dead_letter_stream)),
            intake_limits=intake_limits(broker, settings),
        )


def submitted_at(entry: bytes) -> float | None:
    """Return the submission time of a queue entry's check, in seconds since 1970; None if it has none."""
    try:
        envelope = json.loads(entry)
        body = envelope["body"]
        if envelope["properties"].get("body_encoding") == "base64":
            body = base64.b64decode(body)
        moment = datetime.fromisoformat(json.loads(body)[0][0]["submitted_at"])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return None
    return (moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment).timestamp()


def _by_queue(unacknowledged: int, ends: list[bytes]) -> dict[str, float]:
    """Divide the unacknowledged checks among the queues in the proportions of a sample.

    Each of `ends` is the end of an unacked entry, which names its queue last.
    """
    counts = dict.fromkeys(QUEUES, 0)
    for end in ends:
        queue = end[:-1].rpartition(b",")[2].strip(b' "').decode("utf-8", "replace")
        if queue in counts:
            counts[queue] += 1
    sampled = sum(counts.values())
    if not sampled:
        return dict.fromkeys(QUEUES, 0.0)
    return {queue: unacknowledged * count / sampled for queue, count in counts.items()}


class _Moment(NamedTuple):
    at: float
    published: int
    alive: int
    waiting: int


@dataclass
class Throughput:
    """The fleet's checks per second, measured over `WINDOW_SECONDS` with a constant number of workers."""

    _moments: deque[_Moment] = field(default_factory=deque)

    def record(self, at: float, *, published: int, alive: int, waiting: int) -> None:
        """Record a moment: seconds, events ever published, workers alive, checks waiting.

        The measurement starts again when the number of workers changes or the stream is recreated.
        """
        if self._moments and (self._moments[-1].alive != alive or self._moments[-1].published > published):
            self._moments.clear()
        self._moments.append(_Moment(at, published, alive, waiting))
        while len(self._moments) > 1 and at - self._moments[1].at >= WINDOW_SECONDS:
            self._moments.popleft()

    @property
    def measured(self) -> float | None:
        """Events published per second; None before the second moment."""
        if not self._moments:
            return None
        first, last = self._moments[0], self._moments[-1]
        return (last.published - first.published) / (last.at - first.at) if last.at > first.at else None

    def attainable(self, expected_per_worker: float) -> float:
        """Return the fleet's capacity in checks per second.

        While checks waited at every moment and events were published, this is the measured rate. Otherwise
        the measured rate is only what arrived, so it is at least `expected_per_worker` for each living
        worker, or for one where none lives.
        """
        measured = self.measured or 0.0
        if measured > 0 and all(moment.waiting for moment in self._moments):
            return measured
        alive = self._moments[-1].alive if self._moments else 0
        return max(measured, expected_per_worker * max(1, alive))


class QueueCollector(Collector):
    """Reads Redis whenever Prometheus scrapes; thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._redis = redis.Redis.from_url(
            settings.redis_url.get_secret_value(),
            socket_timeout=_TIMEOUT_SECONDS,
            socket_connect_timeout=_TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 1),
            **tls_options(settings.broker),
        )
        self._lock = threading.Lock()
        self._throughput = Throughput()
        self._snapshot: BrokerSnapshot | None = None
        self._read_at = float("-inf")
        #: Why Redis could not be read; None after a successful read.
        self.error: str | None = "Redis has not been read yet"

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics; only `dnf_redis_up` while Redis does not answer."""
        snapshot = self.snapshot()
        yield _gauge("dnf_redis_up", float(snapshot is not None))
        if snapshot is None:
            return
        with self._lock:
            measured = self._throughput.measured or 0.0
            expected = (
                self._settings.expected_checks_per_second or snapshot.pictures_per_second or _UNKNOWN_RATE
            )
            attainable = self._throughput.attainable(expected)
        backlog = {name: snapshot.waiting[name] + snapshot.unacknowledged[name] for name in QUEUES}
        ages = {name: max(0.0, snapshot.at - since) for name, since in snapshot.oldest.items()}
        yield _labelled("dnf_queue_waiting", snapshot.waiting)
        yield _labelled("dnf_queue_unacknowledged", snapshot.unacknowledged)
        yield _labelled("dnf_queue_oldest_age_seconds", {name: ages.get(name, 0.0) for name in QUEUES})
        yield _labelled("dnf_backlog_seconds", {name: count / attainable for name, count in backlog.items()})
        yield _gauge("dnf_fleet_backlog_seconds", sum(backlog.values()) / attainable)
        yield _gauge("dnf_checks_per_second", measured)
        yield _gauge("dnf_expected_checks_per_second", expected)
        yield _gauge("dnf_attainable_checks_per_second", attainable)
        taken_for = 0.0 if snapshot.oldest_taken is None else max(0.0, snapshot.at - snapshot.oldest_taken)
        yield _gauge("dnf_unacknowledged_oldest_age_seconds", taken_for)
        yield _gauge("dnf_verdict_stream_length", snapshot.stream_length)
        lags = {group.name: group.lag for group in snapshot.groups if group.lag is not None}
        yield _labelled("dnf_verdict_stream_lag", lags)
        yield _labelled("dnf_verdict_stream_pending", {each.name: each.pending for each in snapshot.groups})
        waits = {
            group.name: 0.0 if group.waiting_since is None else max(0.0, snapshot.at - group.waiting_since)
            for group in snapshot.groups
        }
        yield _labelled("dnf_verdict_stream_oldest_unacknowledged_age_seconds", waits)
        yield _gauge("dnf_verdict_retention_seconds", self._settings.verdict_retention_seconds)
        yield _gauge("dnf_dead_letter_stream_length", snapshot.dead_letters)
        yield _labelled("dnf_intake_limit_used_ratio", snapshot.intake_limits)
        yield _gauge("dnf_workers_alive", snapshot.workers_alive)

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that registration does not read Redis."""
        return []

    def snapshot(self) -> BrokerSnapshot | None:
        """Return a snapshot at most a second old, or None while Redis does not answer; `error` says why."""
        with self._lock:
            if time.monotonic() - self._read_at < _SNAPSHOT_SECONDS:
                return self._snapshot
            previous_error = self.error
            try:
                snapshot = BrokerSnapshot.read(self._redis, self._settings)
            except redis.RedisError as error:
                self._snapshot = None
                self.error = str(
                    connection_fault(error, self._settings.broker) or f"{type(error).__name__}: {error}"[:200]
                )
            else:
                self._snapshot, self.error = snapshot, None
                self._throughput.record(
                    snapshot.at,
                    published=snapshot.published,
                    alive=snapshot.workers_alive,
                    waiting=sum(snapshot.waiting.values()),
                )
            self._read_at = time.monotonic()
            if self.error != previous_error:
                log.info("redis_state_changed", error=self.error)
            return self._snapshot


#: Every metric of the exporter, in the order of the page.
DOCUMENTED = [
    Documented("dnf_redis_up", "gauge", "1 when Redis answers within two seconds, 0 otherwise."),
    Documented(
        "dnf_queue_waiting", "gauge", "Checks that wait, over the lists of all priorities.", ("queue",)
    ),
    Documented(
        "dnf_queue_unacknowledged",
        "gauge",
        "Checks that a worker took and has not acknowledged, including those that wait for a retry. Divided"
        f" among the queues by a sample of {SAMPLE_SIZE}: exact up to that number.",
        ("queue",),
    ),
    Documented(
        "dnf_queue_oldest_age_seconds",
        "gauge",
        "Seconds since the next check of the queue was submitted, by its producer's clock; 0 when none waits"
        " or the check does not say.",
        ("queue",),
    ),
    Documented(
        "dnf_backlog_seconds",
        "gauge",
        "Waiting and unacknowledged checks of the queue, divided by dnf_attainable_checks_per_second.",
        ("queue",),
    ),
    Documented("dnf_fleet_backlog_seconds", "gauge", "The same over all queues: the metric to scale on."),
    Documented(
        "dnf_checks_per_second",
        "gauge",
        f"Events published per second, measured over the scrapes of the last {WINDOW_SECONDS:.0f} seconds; 0"
        " at the first scrape, and at the first after the number of workers changed.",
    ),
    Documented(
        "dnf_expected_checks_per_second",
        "gauge",
        "Expected rate of one worker: DNF_EXPECTED_CHECKS_PER_SECOND; unset, the mean of what the living"
        f" workers measured at their start, else of the last ones, else {_UNKNOWN_RATE:g}.",
    ),
    Documented(
        "dnf_attainable_checks_per_second",
        "gauge",
        "Capacity of the fleet: the measured rate while checks waited at every scrape and events were"
        " published; otherwise at least dnf_expected_checks_per_second for each living worker, or for one"
        " where none lives, so that the backlog is finite without workers too.",
    ),
    Documented(
        "dnf_unacknowledged_oldest_age_seconds",
        "gauge",
        "Seconds since the longest unacknowledged check was taken, by the worker's clock.",
    ),
    Documented("dnf_verdict_stream_length", "gauge", "Events kept on the verdict stream."),
    Documented(
        "dnf_verdict_stream_lag",
        "gauge",
        f"Events that a consumer group has not read yet, for at most {MAX_GROUPS} groups; absent where Redis"
        " cannot tell.",
        ("group",),
    ),
    Documented(
        "dnf_verdict_stream_pending",
        "gauge",
        "Events that a consumer group has read and not acknowledged.",
        ("group",),
    ),
    Documented(
        "dnf_verdict_stream_oldest_unacknowledged_age_seconds",
        "gauge",
        "Seconds since the oldest event that a consumer group has not acknowledged was published; 0 without"
        " one.",
        ("group",),
    ),
    Documented(
        "dnf_verdict_retention_seconds",
        "gauge",
        "DNF_VERDICT_RETENTION_SECONDS: the age at which an event is deleted, acknowledged or not.",
    ),
    Documented("dnf_dead_letter_stream_length", "gauge", "Dead letters kept."),
    Documented(
        "dnf_intake_limit_used_ratio",
        "gauge",
        "Used share of each limit at which workers stop taking checks, 0..1: the length of the two streams,"
        f" and {MEMORY_LIMIT:.0%} of Redis' maxmemory (absent without one).",
        ("limit",),
    ),
    Documented(
        "dnf_workers_alive", "gauge", f"Workers that took checks in the last {ALIVE_SECONDS} seconds."
    ),
]
_BY_NAME = {documented.name: documented for documented in DOCUMENTED}


def _gauge(name: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, _BY_NAME[name].meaning, value=value)


def _labelled(name: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, _BY_NAME[name].meaning, labels=_BY_NAME[name].labels)
    for label, value in values.items():
        family.add_metric([label], value)
    return family


def exporter_registry(collector: QueueCollector) -> CollectorRegistry:
    """Return a registry with the exporter's metrics alone."""
    registry = CollectorRegistry()
    registry.register(collector)
    return registry
