"""What the queues, the streams and the fleet look like from outside, for Prometheus and the autoscaler.

Every scrape costs a handful of commands, however long the queues are: lengths, the one check that is next in
turn, a sample of what is in work.
"""

import base64
import json
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import redis
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis.backoff import NoBackoff
from redis.retry import Retry

from worker.admission import MAX_ENTRY_BYTES
from worker.broker import tls_options
from worker.heartbeat import ALIVE_SECONDS, WORKERS_ALIVE
from worker.logs import get_logger
from worker.messages import QUEUES
from worker.metrics import Documented
from worker.settings import Settings

log = get_logger("worker.exporter")

#: The rate is measured over the scrapes of so many seconds.
RATE_SECONDS = 60.0

_PATIENCE_SECONDS = 2.0
# Of unacknowledged checks so many are looked at to share the rest among the queues.
_SAMPLE = 200
# A stream may have any number of groups; each is a label.
_MOST_GROUPS = 50
# Two scrapers within a second see the same figures.
_FRESH_SECONDS = 1.0

# KEYS: unacked, its index, the set of workers, then the lists of all queues in the order in which a worker
# looks at them; ARGV: the longest entry that is read, the sample, seconds that a worker's name counts.
_LOOK = """
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

# kombu keeps a check of another priority than 0 in a list of its own, named so.
_PRIORITIES = ("", "\x06\x163", "\x06\x166", "\x06\x169")


@dataclass(frozen=True)
class Look:
    """One look at Redis; times are the server's, in seconds since 1970.

    By queue: `waiting`, `unacknowledged`, and `oldest`, when the check that is next in turn was submitted.
    `taken` is when the longest unacknowledged check was taken; `published` counts the stream's events ever.
    """

    at: float
    waiting: Mapping[str, int]
    unacknowledged: Mapping[str, float]
    oldest: Mapping[str, float]
    taken: float | None
    alive: int
    published: int
    stream_length: int
    groups: Mapping[str, tuple[int | None, int]]
    dead_letters: int


@dataclass
class Rate:
    """The fleet's checks a second, measured over `RATE_SECONDS` while the same number of workers lives."""

    _seen: deque[tuple[float, int, int, int]] = field(default_factory=deque)

    def note(self, look: Look) -> None:
        """Remember a look; a fleet of another size, or a stream that began anew, is measured anew."""
        waiting = sum(look.waiting.values())
        if self._seen and (self._seen[-1][2] != look.alive or self._seen[-1][1] > look.published):
            self._seen.clear()
        self._seen.append((look.at, look.published, look.alive, waiting))
        while len(self._seen) > 1 and look.at - self._seen[1][0] >= RATE_SECONDS:
            self._seen.popleft()

    @property
    def measured(self) -> float | None:
        """Events published a second; None before the second look."""
        if len(self._seen) < 2:  # noqa: PLR2004 - a rate needs two
            return None
        (began, first, *_), (ended, last, *_) = self._seen[0], self._seen[-1]
        return (last - first) / (ended - began) if ended > began else None

    def attainable(self, expected_each: float) -> float:
        """Return what the fleet can do a second.

        While checks waited at every look and events came, it is the measured rate. Otherwise that is only
        what arrived, or nothing is known yet: then it is at least `expected_each` of each living worker, or
        of the first one to come.
        """
        measured = self.measured or 0.0
        busy = all(waiting for *_, waiting in self._seen)
        if busy and measured > 0:
            return measured
        alive = self._seen[-1][2] if self._seen else 0
        return max(measured, expected_each * max(1, alive))


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
        self._rate = Rate()
        self._lock = threading.Lock()
        self._look: Look | None = None
        self._looked = float("-inf")
        self.fault: str | None = "Redis was not asked yet"

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def collect(self) -> Iterable[Metric]:
        """Yield the figures; of a Redis that does not answer only that it does not."""
        look = self.look()
        yield _gauge("dnf_redis_up", float(look is not None))
        if look is None:
            return
        rate = self._rate.attainable(self._settings.expected_checks_per_second)
        held = {name: look.waiting[name] + look.unacknowledged[name] for name in QUEUES}
        ages = {name: max(0.0, look.at - since) for name, since in look.oldest.items()}
        yield _by("dnf_queue_waiting", look.waiting)
        yield _by("dnf_queue_unacknowledged", look.unacknowledged)
        yield _by("dnf_queue_oldest_age_seconds", {name: ages.get(name, 0.0) for name in QUEUES})
        yield _by("dnf_backlog_seconds", {name: count / rate for name, count in held.items()})
        yield _gauge("dnf_fleet_backlog_seconds", sum(held.values()) / rate)
        yield _gauge("dnf_checks_per_second", self._rate.measured or 0.0)
        yield _gauge("dnf_attainable_checks_per_second", rate)
        taken = 0.0 if look.taken is None else max(0.0, look.at - look.taken)
        yield _gauge("dnf_unacknowledged_oldest_age_seconds", taken)
        yield _gauge("dnf_verdict_stream_length", look.stream_length)
        lags = {name: lag for name, (lag, _) in look.groups.items() if lag is not None}
        yield _by("dnf_verdict_stream_lag", lags)
        yield _by("dnf_verdict_stream_pending", {name: pending for name, (_, pending) in look.groups.items()})
        yield _gauge("dnf_dead_letter_stream_length", look.dead_letters)
        yield _gauge("dnf_workers_alive", look.alive)

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that registration asks nothing of Redis."""
        return []

    def look(self) -> Look | None:
        """Return a look of this second, or None when Redis does not answer; `fault` then says why."""
        with self._lock:
            if time.monotonic() - self._looked < _FRESH_SECONDS:
                return self._look
            fault = self.fault
            try:
                self._look, self.fault = self._asked(), None
                self._rate.note(self._look)
            except redis.RedisError as error:
                self._look, self.fault = None, f"{type(error).__name__}: {error}"[:200]
            self._looked = time.monotonic()
            if self.fault != fault:
                log.info("redis_asked", fault=self.fault)
            return self._look

    def _asked(self) -> Look:
        lists = [queue + suffix for queue in QUEUES for suffix in _PRIORITIES]
        keys = ["unacked", "unacked_index", WORKERS_ALIVE, *lists]
        reply: Any = self._redis.eval(_LOOK, len(keys), *keys, MAX_ENTRY_BYTES, _SAMPLE, ALIVE_SECONDS)
        at, lengths, entries, held, ends, taken, alive = reply
        waiting, oldest = dict.fromkeys(QUEUES, 0), dict[str, float]()
        for name, length, entry in zip(lists, lengths, entries, strict=True):
            queue = name.partition("\x06")[0]
            waiting[queue] += length
            if entry and queue not in oldest and (since := submitted_at(entry)) is not None:
                oldest[queue] = since
        stream: dict[str, Any] = {}
        groups: list[dict[str, Any]] = []
        with suppress(redis.ResponseError):  # there is no stream before its first event
            stream = self._redis.xinfo_stream(self._settings.verdict_stream)
            groups = self._redis.xinfo_groups(self._settings.verdict_stream)
        return Look(
            at=float(at),
            waiting=waiting,
            unacknowledged=_shared(held, ends),
            oldest=oldest,
            taken=float(taken) if taken else None,
            alive=alive,
            published=int(stream.get("entries-added", stream.get("length", 0))),
            stream_length=int(stream.get("length", 0)),
            groups={_text(g["name"])[:100]: (g.get("lag"), int(g["pending"])) for g in groups[:_MOST_GROUPS]},
            dead_letters=int(self._redis.xlen(self._settings.dead_letter_stream)),
        )


def submitted_at(entry: bytes) -> float | None:
    """Return when the check in a queue's entry was submitted, seconds since 1970; None if it does not say."""
    try:
        envelope = json.loads(entry)
        body = envelope["body"]
        if envelope["properties"].get("body_encoding") == "base64":
            body = base64.b64decode(body)
        moment = datetime.fromisoformat(json.loads(body)[0][0]["submitted_at"])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return None
    return (moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment).timestamp()


def _shared(held: int, ends: list[bytes]) -> dict[str, float]:
    """Share the unacknowledged checks among the queues as a sample of their ends has them."""
    counted = dict.fromkeys(QUEUES, 0)
    for end in ends:
        queue = end[:-1].rpartition(b",")[2].strip(b' "').decode("utf-8", "replace")
        if queue in counted:
            counted[queue] += 1
    sampled = sum(counted.values())
    if not sampled:
        return dict.fromkeys(QUEUES, 0.0)
    return {queue: held * count / sampled for queue, count in counted.items()}


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
        f" among the queues by a sample of {_SAMPLE}: exact up to that number.",
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
        f"Events published a second, measured over the scrapes of the last {RATE_SECONDS:.0f} seconds; 0 at"
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
        f"Events that a consumer group has yet to read, of at most {_MOST_GROUPS} groups; absent where Redis"
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


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
