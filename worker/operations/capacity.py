"""Capacity planning by arithmetic: the workers, Redis memory, S3 reads and money that a rate of checks needs.

`python -m deploy.simulation` simulates a day under the autoscaler with the same models.
"""

from dataclasses import dataclass
from math import ceil
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from worker.settings import Settings

# Bytes of Redis memory for each item, allocator overhead included, measured on Valkey 9.1. A test measures
# them again.
#: A waiting check with a digest and two metadata fields.
WAITING_BYTES = 1_090
#: An unacknowledged check.
UNACKED_BYTES = 1_300
#: What is kept of a check for `publish_once_ttl_seconds`: its compressed event and its attempt count.
RECORD_BYTES = 1_110
#: An event on the stream.
EVENT_BYTES = 1_780
#: A thumbnail of 128 x 128 pixels under its key, for `thumbnail_ttl_seconds` unless there is a bucket for it.
THUMBNAIL_BYTES = 22_000
THUMBNAIL_SIDE_PIXELS = 128
#: A dead letter on its stream.
DEAD_LETTER_BYTES = 900

DAY_SECONDS = 86_400
#: Checks per second that one Valkey server is planned for (measured, see the capacity page).
CHECKS_PER_SECOND_PER_BROKER = 500.0
#: The autoscaler's target is the number of checks in progress at this utilisation.
TARGET_UTILISATION = 0.8
#: Seconds between two decisions of the HPA (--horizontal-pod-autoscaler-sync-period).
HPA_SYNC_SECONDS = 15.0
#: Time until a rising load leads to new pods: one scrape, then one HPA round.
REACTION_SECONDS = 15.0 + HPA_SYNC_SECONDS
#: A consumer group may be away for so long, to be restarted, before workers stop taking checks.
MIN_ABSENCE_SECONDS = 600.0
#: Below this size the memory for records or thumbnails needs no warning.
NOTABLE_BYTES = 2e9


@dataclass(frozen=True)
class WorkerModel:
    """The measured speed of one worker."""

    #: Throughput with full batches.
    pictures_per_second: float
    #: From the creation of the pod (image pull, model load, warm-up) until it consumes.
    start_seconds: float = 90.0
    batch_size: int = 16
    #: Share of a full batch's time that a batch of one takes too, 0..1: 0 on a CPU, towards 1 on a GPU.
    fixed_share: float = 0.0
    #: Time a check spends in the worker outside of its batch (fetch, decode, publish).
    overhead_seconds: float = 0.1
    #: Distribution of batch times; `exponential` is for comparison with queueing theory.
    times: Literal["constant", "exponential"] = "constant"

    def batch_seconds(self, pictures: float) -> float:
        """Return the mean time of a batch of `pictures`."""
        return (
            self.fixed_share * self.batch_size + (1 - self.fixed_share) * pictures
        ) / self.pictures_per_second

    def checks_in_progress(self, rate: float) -> float:
        """Return the mean number of checks in progress in a worker that handles `rate` checks per second."""
        batch = 1.0
        if self.fixed_share:
            # A batch holds the checks that arrived while the previous one was computed.
            seconds = self.fixed_share * self.batch_size / self.pictures_per_second
            arrived = rate * seconds / (1 - rate * (1 - self.fixed_share) / self.pictures_per_second)
            batch = min(max(arrived, 1.0), float(self.batch_size))
        return rate * (self.batch_seconds(batch) + self.overhead_seconds)


class Demand(BaseModel):
    """The load on a fleet: `peak_factor` is peak over mean, `headroom` a share on top of the peak."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checks_per_day: float = Field(gt=0, le=1e12)
    peak_factor: float = Field(default=2.0, ge=1, le=10)
    headroom: float = Field(default=0.25, ge=0, le=10)
    picture_bytes: float = Field(default=1e6, gt=0, description="Mean size of an upload.")
    price_per_worker_hour: float | None = Field(default=None, ge=0, description="In any currency.")
    checks_per_second_per_broker: float = Field(default=CHECKS_PER_SECOND_PER_BROKER, gt=0)


class RedisMemory(BaseModel):
    """Bytes of Redis memory at the peak, over all servers."""

    waiting: float
    unacknowledged: float
    records: float
    verdict_stream: float
    thumbnails: float
    dead_letters: float
    total: float
    per_server: float


class Plan(BaseModel):
    """The resources that a demand needs: rates in checks per second, sizes in bytes, times in seconds."""

    mean_rate: float
    peak_rate: float
    workers_at_mean: int
    workers_at_peak: int
    workers_with_headroom: int
    checks_waiting_while_workers_start: int
    backlog_drain_seconds: float
    brokers: int
    redis: RedisMemory
    #: How long a consumer group may be away at the peak before the stream is full and workers pause.
    verdict_stream_full_after_seconds: float
    s3_reads_per_second_at_peak: float
    s3_reads_per_day: float
    s3_writes_per_day: float
    s3_bytes_per_second_at_peak: float
    s3_bytes_per_day: float
    checks_per_replica_target: int
    cost_per_million_fully_busy: float | None
    cost_per_million_fixed_fleet: float | None
    warnings: list[str]


def plan(demand: Demand, worker: WorkerModel, settings: Settings) -> Plan:
    """Return the plan; `settings` say how much Redis keeps, and for how long."""
    mean = demand.checks_per_day / DAY_SECONDS
    peak = mean * demand.peak_factor
    workers = [
        max(1, ceil(rate / worker.pictures_per_second - 1e-9))
        for rate in (mean, peak, peak * (1 + demand.headroom))
    ]
    # Worst case: the peak comes at once to a fleet sized for the mean, and waits for new pods.
    missing_rate = max(0.0, peak - workers[0] * worker.pictures_per_second)
    waiting = missing_rate * (worker.start_seconds + REACTION_SECONDS)
    spare = workers[2] * worker.pictures_per_second - peak
    brokers = max(1, ceil(peak / demand.checks_per_second_per_broker))
    price, hourly = demand.price_per_worker_hour, 3600 * worker.pictures_per_second
    redis = _redis_memory(demand, settings, waiting=waiting, workers=workers[2], brokers=brokers)
    full_after = brokers * settings.verdict_stream_max_length / peak
    return Plan(
        mean_rate=mean,
        peak_rate=peak,
        workers_at_mean=workers[0],
        workers_at_peak=workers[1],
        workers_with_headroom=workers[2],
        checks_waiting_while_workers_start=ceil(waiting),
        backlog_drain_seconds=waiting / spare if spare > 0 else 0.0,
        brokers=brokers,
        redis=redis,
        verdict_stream_full_after_seconds=full_after,
        s3_reads_per_second_at_peak=peak,
        s3_reads_per_day=demand.checks_per_day,
        s3_writes_per_day=demand.checks_per_day if settings.thumbnail_bucket else 0,
        s3_bytes_per_second_at_peak=peak * demand.picture_bytes,
        s3_bytes_per_day=demand.checks_per_day * demand.picture_bytes,
        checks_per_replica_target=recommended_target(worker),
        cost_per_million_fully_busy=None if price is None else 1e6 / hourly * price,
        cost_per_million_fixed_fleet=(
            None if price is None else workers[2] * 24 * price / demand.checks_per_day * 1e6
        ),
        warnings=_warnings(
            settings, waiting=waiting / brokers, brokers=brokers, redis=redis, full_after=full_after
        ),
    )


def recommended_target(worker: WorkerModel) -> int:
    """Return `checksPerReplicaTarget`: the checks in progress in a worker at 80 % utilisation, rounded up.

    A lower target pays for idle workers. A much higher one costs even more: the fleet stays too small until
    checks wait, then grows far beyond need.
    """
    return ceil(worker.checks_in_progress(TARGET_UTILISATION * worker.pictures_per_second) - 1e-9)


def _redis_memory(
    demand: Demand, settings: Settings, *, waiting: float, workers: int, brokers: int
) -> RedisMemory:
    scale = (settings.thumbnail_side_pixels / THUMBNAIL_SIDE_PIXELS) ** 2
    thumbnails = 0.0
    if not settings.thumbnail_bucket:
        thumbnails = _checks_within(demand, settings.thumbnail_ttl_seconds) * THUMBNAIL_BYTES * scale
    parts = {
        "waiting": waiting * WAITING_BYTES,
        "unacknowledged": workers * settings.threads * UNACKED_BYTES,
        "records": _checks_within(demand, settings.publish_once_ttl_seconds) * RECORD_BYTES,
        "verdict_stream": brokers * settings.verdict_stream_max_length * EVENT_BYTES,
        "thumbnails": thumbnails,
        "dead_letters": brokers * settings.dead_letter_stream_max_length * DEAD_LETTER_BYTES,
    }
    total = sum(parts.values())
    return RedisMemory(**parts, total=total, per_server=total / brokers)


def _checks_within(demand: Demand, seconds: float) -> float:
    """Return the most checks that arrive within a time; within less than a day at the peak's rate."""
    factor = demand.peak_factor if seconds < DAY_SECONDS else 1.0
    return factor * demand.checks_per_day * seconds / DAY_SECONDS


def _warnings(
    settings: Settings, *, waiting: float, brokers: int, redis: RedisMemory, full_after: float
) -> list[str]:
    found = []
    if waiting > settings.max_queue_length:
        found.append(
            f"While workers start, {waiting:,.0f} checks wait on each broker, more than"
            f" DNF_MAX_QUEUE_LENGTH={settings.max_queue_length:,}: producers would be refused."
        )
    if full_after < MIN_ABSENCE_SECONDS:
        needed = ceil(settings.verdict_stream_max_length * MIN_ABSENCE_SECONDS / full_after)
        found.append(
            f"At the peak the verdict stream is full {full_after:,.0f} seconds after a consumer group has"
            " stopped, and workers pause. For"
            f" {MIN_ABSENCE_SECONDS:.0f} seconds set DNF_VERDICT_STREAM_MAX_LENGTH={needed:,}"
            f" ({needed * EVENT_BYTES / 1e9:,.1f} GB per broker)."
        )
    if redis.thumbnails > NOTABLE_BYTES:
        found.append(
            f"Thumbnails take {redis.thumbnails / 1e9:,.1f} GB of Redis memory. Set DNF_THUMBNAIL_BUCKET to"
            f" keep them in the object store, or shorten"
            f" DNF_THUMBNAIL_TTL_SECONDS={settings.thumbnail_ttl_seconds}."
        )
    if redis.records > max((redis.total - redis.thumbnails) / 2, NOTABLE_BYTES):
        found.append(
            f"The records of published checks take {redis.records / 1e9:,.1f} GB of Redis memory."
            f" DNF_PUBLISH_ONCE_TTL_SECONDS={settings.publish_once_ttl_seconds} can be shortened to the"
            " longest time after which a platform may submit the same check again; afterwards the check is"
            " judged anew."
        )
    if brokers > 1:
        found.append(
            f"The peak needs {brokers} brokers, each with its own queues, streams and workers; platforms"
            " choose one by the check id."
        )
    return found
