"""What a rate of checks needs, by arithmetic: workers, Redis, S3 and money."""

from math import ceil

from pydantic import BaseModel, ConfigDict, Field

from deploy.simulation.scaling import HPA_SYNC_SECONDS
from deploy.simulation.traffic import DAY_SECONDS
from worker.operations.worker_model import WorkerModel
from worker.settings import Settings

# Bytes of Redis memory, measured on Valkey 9.1 with what its structures add; a test measures them again.
#: Of a waiting check with a digest and two fields of metadata.
WAITING_BYTES = 1_090
#: Of one check that a worker holds.
UNACKED_BYTES = 1_300
#: Of what is remembered of a check for `publish_once_ttl_seconds`: its mark, and how often it was begun.
REMEMBERED_BYTES = 133 + 173
#: Of an event on the stream with its thumbnail of 128 pixels.
EVENT_BYTES = 46_000
#: Of a dead letter on its stream.
DEAD_LETTER_BYTES = 900

#: Checks a second that one Valkey server may be given (docs/capacity.md says what was measured).
CHECKS_A_SECOND_A_BROKER = 500.0
#: Utilisation at which a worker's checks in work are the autoscaler's target.
TARGET_UTILISATION = 0.8
#: Until a rise is in a reading, and the autoscaler's round after it: then new pods are asked for.
REACTION_SECONDS = 15.0 + HPA_SYNC_SECONDS
#: A stream that holds events for less is no safety for a consumer that restarts.
SHORTEST_RETENTION_SECONDS = 600.0
#: Memory for what is remembered that is worth a word.
NOTABLE_BYTES = 2e9


class Demand(BaseModel):
    """What is asked of a fleet: `peak_factor` over the mean, `headroom` as a share on top of the peak."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checks_a_day: float = Field(gt=0, le=1e12)
    peak_factor: float = Field(default=2.0, ge=1, le=10)
    headroom: float = Field(default=0.25, ge=0, le=10)
    picture_bytes: float = Field(default=1e6, gt=0, description="The mean size of an upload.")
    worker_hour_price: float | None = Field(default=None, ge=0, description="In any currency.")
    checks_a_second_a_broker: float = Field(default=CHECKS_A_SECOND_A_BROKER, gt=0)


class RedisMemory(BaseModel):
    """Bytes of Redis memory over all servers, at the peak."""

    waiting: float
    unacknowledged: float
    remembered: float
    verdict_stream: float
    dead_letters: float
    total: float
    of_one_server: float


class Plan(BaseModel):
    """What the demand needs: rates in checks a second, sizes in bytes, times in seconds."""

    mean_rate: float
    peak_rate: float
    workers_at_mean: int
    workers_at_peak: int
    workers_with_headroom: int
    checks_waiting_while_workers_start: int
    seconds_to_work_them_off: float
    brokers: int
    redis: RedisMemory
    stream_holds_seconds_at_peak: float
    s3_reads_a_second_at_peak: float
    s3_reads_a_day: float
    s3_bytes_a_second_at_peak: float
    s3_bytes_a_day: float
    checks_per_replica_target: int
    cost_a_million_when_never_idle: float | None
    cost_a_million_with_a_fixed_fleet: float | None
    warnings: list[str]


def plan(demand: Demand, worker: WorkerModel, settings: Settings) -> Plan:
    """Work out a plan; `settings` say how much of what Redis keeps, and for how long."""
    mean = demand.checks_a_day / DAY_SECONDS
    peak = mean * demand.peak_factor
    workers = [
        max(1, ceil(rate / worker.pictures_a_second - 1e-9))
        for rate in (mean, peak, peak * (1 + demand.headroom))
    ]
    # The worst that a fleet of the mean can meet: the peak at once, and only new pods carry the difference.
    short = max(0.0, peak - workers[0] * worker.pictures_a_second)
    waiting = short * (worker.start_seconds + REACTION_SECONDS)
    spare = workers[2] * worker.pictures_a_second - peak
    brokers = max(1, ceil(peak / demand.checks_a_second_a_broker))
    price, hourly = demand.worker_hour_price, 3600 * worker.pictures_a_second
    redis = _redis(demand, settings, waiting=waiting, workers=workers[2], brokers=brokers)
    retention = brokers * settings.verdict_stream_max_length / peak
    return Plan(
        mean_rate=mean,
        peak_rate=peak,
        workers_at_mean=workers[0],
        workers_at_peak=workers[1],
        workers_with_headroom=workers[2],
        checks_waiting_while_workers_start=ceil(waiting),
        seconds_to_work_them_off=waiting / spare if spare > 0 else 0.0,
        brokers=brokers,
        redis=redis,
        stream_holds_seconds_at_peak=retention,
        s3_reads_a_second_at_peak=peak,
        s3_reads_a_day=demand.checks_a_day,
        s3_bytes_a_second_at_peak=peak * demand.picture_bytes,
        s3_bytes_a_day=demand.checks_a_day * demand.picture_bytes,
        checks_per_replica_target=recommended_target(worker),
        cost_a_million_when_never_idle=None if price is None else 1e6 / hourly * price,
        cost_a_million_with_a_fixed_fleet=(
            None if price is None else workers[2] * 24 * price / demand.checks_a_day * 1e6
        ),
        warnings=_warnings(
            settings, waiting=waiting / brokers, brokers=brokers, redis=redis, retention=retention
        ),
    )


def recommended_target(worker: WorkerModel) -> int:
    """Return `checksPerReplicaTarget`: what a worker has in work at four fifths of its rate, rounded up.

    A lower one costs idle workers. A much higher one costs more: the fleet is too small until checks wait,
    and then grows far beyond need.
    """
    return ceil(worker.in_work(TARGET_UTILISATION * worker.pictures_a_second) - 1e-9)


def _redis(demand: Demand, settings: Settings, *, waiting: float, workers: int, brokers: int) -> RedisMemory:
    days = settings.publish_once_ttl_seconds / DAY_SECONDS
    remembered = demand.checks_a_day * max(days, 1 / DAY_SECONDS)
    if days < 1:
        remembered *= demand.peak_factor
    parts = {
        "waiting": waiting * WAITING_BYTES,
        "unacknowledged": workers * settings.threads * UNACKED_BYTES,
        "remembered": remembered * REMEMBERED_BYTES,
        "verdict_stream": brokers * settings.verdict_stream_max_length * EVENT_BYTES,
        "dead_letters": brokers * settings.dead_letter_stream_max_length * DEAD_LETTER_BYTES,
    }
    total = sum(parts.values())
    return RedisMemory(**parts, total=total, of_one_server=total / brokers)


def _warnings(
    settings: Settings, *, waiting: float, brokers: int, redis: RedisMemory, retention: float
) -> list[str]:
    found = []
    if waiting > settings.max_queue_length:
        found.append(
            f"While workers start {waiting:,.0f} checks wait on one broker, and DNF_MAX_QUEUE_LENGTH is"
            f" {settings.max_queue_length:,}: producers would be refused."
        )
    if retention < SHORTEST_RETENTION_SECONDS:
        needed = ceil(settings.verdict_stream_max_length * SHORTEST_RETENTION_SECONDS / retention)
        found.append(
            f"The verdict stream holds {retention:,.0f} seconds of events at the peak: a consumer that is"
            f" away for longer misses some. Ten minutes need DNF_VERDICT_STREAM_MAX_LENGTH={needed:,}"
            f" ({needed * EVENT_BYTES / 1e9:,.1f} GB a broker)."
        )
    if redis.remembered > max(redis.total / 2, NOTABLE_BYTES):
        found.append(
            f"What is remembered of published checks is {redis.remembered / 1e9:,.1f} GB of the memory:"
            f" DNF_PUBLISH_ONCE_TTL_SECONDS={settings.publish_once_ttl_seconds} may be shorter, down to the"
            " longest time after which a platform submits a check again."
        )
    if brokers > 1:
        found.append(
            f"One broker does not carry the peak: {brokers} of them, each with queues, streams and workers of"
            " its own, and platforms choose one by the check id."
        )
    return found
