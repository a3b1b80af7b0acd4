"""What queues, streams and fleet look like from outside, for Prometheus and the autoscaler."""

import threading
import time
from collections.abc import Iterable, Mapping

import redis
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis.backoff import NoBackoff
from redis.retry import Retry

from worker.broker.connection import distrust, tls_options
from worker.contract.messages import QUEUES
from worker.operations.exporter.snapshot import MOST_GROUPS, SAMPLE, BrokerSnapshot
from worker.operations.exporter.throughput import WINDOW_SECONDS, Throughput
from worker.process.heartbeat import ALIVE_SECONDS
from worker.settings import Settings
from worker.telemetry.logs import get_logger
from worker.telemetry.metrics import Documented

log = get_logger(__name__)

_PATIENCE_SECONDS = 2.0
# Two scrapers within a second see the same figures.
_FRESH_SECONDS = 1.0


class QueueCollector(Collector):
    """Looks at Redis whenever Prometheus asks; safe for threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._redis = redis.Redis.from_url(
            settings.redis_url.get_secret_value(),
            socket_timeout=_PATIENCE_SECONDS,
            socket_connect_timeout=_PATIENCE_SECONDS,
            retry=Retry(NoBackoff(), 1),
            **tls_options(settings),
        )
        self._lock = threading.Lock()
        self._throughput = Throughput()
        self._snapshot: BrokerSnapshot | None = None
        self._taken = float("-inf")
        self.fault: str | None = "Redis was not asked yet"

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def collect(self) -> Iterable[Metric]:
        """Yield the figures; of a Redis that does not answer only that it does not."""
        seen = self.snapshot()
        yield _gauge("dnf_redis_up", float(seen is not None))
        if seen is None:
            return
        with self._lock:
            measured = self._throughput.measured or 0.0
            attainable = self._throughput.attainable(self._settings.expected_checks_per_second)
        held = {name: seen.waiting[name] + seen.unacknowledged[name] for name in QUEUES}
        ages = {name: max(0.0, seen.at - since) for name, since in seen.oldest.items()}
        yield _by("dnf_queue_waiting", seen.waiting)
        yield _by("dnf_queue_unacknowledged", seen.unacknowledged)
        yield _by("dnf_queue_oldest_age_seconds", {name: ages.get(name, 0.0) for name in QUEUES})
        yield _by("dnf_backlog_seconds", {name: count / attainable for name, count in held.items()})
        yield _gauge("dnf_fleet_backlog_seconds", sum(held.values()) / attainable)
        yield _gauge("dnf_checks_per_second", measured)
        yield _gauge("dnf_attainable_checks_per_second", attainable)
        taken = 0.0 if seen.taken is None else max(0.0, seen.at - seen.taken)
        yield _gauge("dnf_unacknowledged_oldest_age_seconds", taken)
        yield _gauge("dnf_verdict_stream_length", seen.stream_length)
        lags = {name: lag for name, (lag, _) in seen.groups.items() if lag is not None}
        yield _by("dnf_verdict_stream_lag", lags)
        yield _by("dnf_verdict_stream_pending", {name: pending for name, (_, pending) in seen.groups.items()})
        yield _gauge("dnf_dead_letter_stream_length", seen.dead_letters)
        yield _gauge("dnf_workers_alive", seen.alive)

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that registration asks nothing of Redis."""
        return []

    def snapshot(self) -> BrokerSnapshot | None:
        """Return one of this second, or None when Redis does not answer; `fault` then says why."""
        with self._lock:
            if time.monotonic() - self._taken < _FRESH_SECONDS:
                return self._snapshot
            fault = self.fault
            try:
                seen = BrokerSnapshot.take(self._redis, self._settings)
            except redis.RedisError as error:
                self._snapshot = None
                self.fault = distrust(error, self._settings) or f"{type(error).__name__}: {error}"[:200]
            else:
                self._snapshot, self.fault = seen, None
                waiting = sum(seen.waiting.values())
                self._throughput.note(seen.at, published=seen.published, alive=seen.alive, waiting=waiting)
            self._taken = time.monotonic()
            if self.fault != fault:
                log.info("redis_state_changed", fault=self.fault)
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
        "Checks that a worker took and did not finish, those among them that wait for another try. Shared"
        f" among the queues by a sample of {SAMPLE}: exact up to that number.",
        ("queue",),
    ),
    Documented(
        "dnf_queue_oldest_age_seconds",
        "gauge",
        "Seconds since the check that is next in turn was submitted, by its producer's clock; 0 when none"
        " waits or it does not say.",
        ("queue",),
    ),
    Documented(
        "dnf_backlog_seconds",
        "gauge",
        "Waiting and unacknowledged checks of the queue, divided by dnf_attainable_checks_per_second.",
        ("queue",),
    ),
    Documented("dnf_fleet_backlog_seconds", "gauge", "The same over all queues: the figure to scale on."),
    Documented(
        "dnf_checks_per_second",
        "gauge",
        f"Events published a second, measured over the scrapes of the last {WINDOW_SECONDS:.0f} seconds; 0 at"
        " the first scrape and at the first after the number of workers changed.",
    ),
    Documented(
        "dnf_attainable_checks_per_second",
        "gauge",
        "What the fleet can do: the measured rate while checks waited at every scrape and events came;"
        " otherwise at least DNF_EXPECTED_CHECKS_PER_SECOND of each living worker, or of one where none"
        " lives, so that the backlog is a figure without workers too.",
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
        f"Events that a consumer group has yet to read, of at most {MOST_GROUPS} groups; absent where Redis"
        " cannot tell.",
        ("group",),
    ),
    Documented(
        "dnf_verdict_stream_pending",
        "gauge",
        "Events that a consumer group read and did not acknowledge.",
        ("group",),
    ),
    Documented("dnf_dead_letter_stream_length", "gauge", "Dead letters kept."),
    Documented(
        "dnf_workers_alive", "gauge", f"Workers that took checks in the last {ALIVE_SECONDS} seconds."
    ),
]
_BY_NAME = {documented.name: documented for documented in DOCUMENTED}


def _gauge(name: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, _BY_NAME[name].meaning, value=value)


def _by(name: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, _BY_NAME[name].meaning, labels=_BY_NAME[name].labels)
    for label, value in values.items():
        family.add_metric([label], value)
    return family


def exporter_registry(collector: QueueCollector) -> CollectorRegistry:
    """Return a registry with the exporter's figures alone."""
    registry = CollectorRegistry()
    registry.register(collector)
    return registry
