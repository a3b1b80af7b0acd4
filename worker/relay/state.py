"""What waits in database and streams, read whenever Prometheus scrapes a relay or a probe asks."""

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import redis
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from worker.broker.consumer_groups import ConsumerGroup, consumer_groups
from worker.contract.messages import UnavailableError
from worker.database.database import Database
from worker.reviews import outbox, statistics
from worker.settings import Settings
from worker.telemetry.metrics import Documented

# Scrapes and probes within this time share one reading.
_READING_SECONDS = 1.0


@dataclass(frozen=True)
class _Reading:
    queue: statistics.Queue
    backlog: outbox.Backlog
    stream_length: int
    groups: list[ConsumerGroup]
    #: The broker's clock, in seconds since 1970.
    at: float


class RelayState(Collector):
    """Reads what waits; thread-safe."""

    def __init__(self, database: Database, broker: redis.Redis, settings: Settings) -> None:
        self._database = database
        self._broker = broker
        self._stream = settings.decision_stream
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._reading: _Reading | None = None
        #: Why the state could not be read; None after a successful reading.
        self.error: str | None = None

    def answers(self) -> bool:
        """Return whether both database and broker answer; `error` says why not."""
        return self._read() is not None

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics; only `dnf_relay_up` while database or broker do not answer."""
        reading = self._read()
        yield _gauge("dnf_relay_up", float(reading is not None))
        if reading is None:
            return
        queue = reading.queue
        yield _gauge("dnf_reviews_waiting", queue.waiting)
        yield _gauge("dnf_reviews_claimed", queue.claimed)
        yield _gauge("dnf_reviews_overdue", queue.overdue)
        yield _gauge("dnf_appeals_waiting", queue.appeals)
        yield _gauge("dnf_reviews_oldest_age_seconds", queue.oldest_seconds)
        capped = {origin: queue.capped_today.get(origin, 0) for origin in ("uncertain", "audit")}
        yield _labelled("dnf_reviews_capped_today", capped)
        yield _gauge("dnf_outbox_waiting", reading.backlog.waiting)
        yield _gauge("dnf_outbox_oldest_age_seconds", reading.backlog.oldest_seconds)
        yield _gauge("dnf_decision_stream_length", reading.stream_length)
        yield _labelled(
            "dnf_decision_stream_pending",
            {group.name: group.pending + (group.lag or 0) for group in reading.groups},
        )
        yield _labelled(
            "dnf_decision_stream_oldest_unacknowledged_age_seconds",
            {
                group.name: max(0.0, reading.at - group.waiting_since) if group.waiting_since else 0.0
                for group in reading.groups
            },
        )

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that registration reads nothing."""
        return []

    def _read(self) -> _Reading | None:
        with self._lock:
            if time.monotonic() - self._read_at < _READING_SECONDS:
                return self._reading
            try:
                with self._database.transaction() as tx:
                    queue, backlog = statistics.queue(tx), outbox.backlog(tx)
                seconds, microseconds = _pair(self._broker.time())
                self._reading = _Reading(
                    queue=queue,
                    backlog=backlog,
                    stream_length=int(self._broker.xlen(self._stream)),
                    groups=consumer_groups(self._broker, self._stream),
                    at=seconds + microseconds / 1e6,
                )
                self.error = None
            except (UnavailableError, redis.RedisError) as error:
                self._reading = None
                self.error = f"{type(error).__name__}: {error}"[:200]
            self._read_at = time.monotonic()
            return self._reading


def _pair(reply: Any) -> tuple[int, int]:
    return int(reply[0]), int(reply[1])


#: Every metric of `RelayState`, in the order of the page.
DOCUMENTED = [
    Documented("dnf_relay_up", "gauge", "1 when database and broker answer this relay, 0 otherwise."),
    Documented("dnf_reviews_waiting", "gauge", "Reviews that wait for a moderator, claimed ones included."),
    Documented("dnf_reviews_claimed", "gauge", "Reviews that a moderator holds now."),
    Documented("dnf_reviews_overdue", "gauge", "Reviews that have waited for DNF_REVIEW_DUE_SECONDS."),
    Documented("dnf_appeals_waiting", "gauge", "Appeals that wait for a moderator."),
    Documented(
        "dnf_reviews_oldest_age_seconds",
        "gauge",
        "Seconds since the oldest review that waits was opened; 0 without one.",
    ),
    Documented(
        "dnf_reviews_capped_today",
        "gauge",
        "Verdicts that DNF_REVIEW_DAILY_LIMIT kept from people since midnight (UTC).",
        ("origin",),
    ),
    Documented("dnf_outbox_waiting", "gauge", "Decisions that are due and not published."),
    Documented(
        "dnf_outbox_oldest_age_seconds",
        "gauge",
        "Seconds since the oldest of them was due; 0 without one.",
    ),
    Documented("dnf_decision_stream_length", "gauge", "Decisions kept on their stream."),
    Documented(
        "dnf_decision_stream_pending",
        "gauge",
        "Decisions that a consumer group has not acknowledged, read or not.",
        ("group",),
    ),
    Documented(
        "dnf_decision_stream_oldest_unacknowledged_age_seconds",
        "gauge",
        "Seconds since the oldest decision that a consumer group has not acknowledged was published; 0"
        " without one.",
        ("group",),
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
