"""The metrics of a worker process, for Prometheus.

Dashboard, alerts and scaling rule rely on the names, and the page of metrics is generated from this module
(`make reference`). Every label has few values: no check, bucket or host is one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from worker.contract.messages import QUEUES, DeadLetterReason, Stage

Item = TypeVar("Item")
Result = TypeVar("Result")

Outcome = Literal["real", "review", "generated", "rejected"]
RetryReason = Literal[
    "broker", "lock_timeout", "storage_unavailable", "model_failed", "out_of_memory", "internal_error"
]


@dataclass(frozen=True)
class Documented:
    """One row of the page of metrics."""

    #: As Prometheus stores it.
    name: str
    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    labels: tuple[str, ...] = ()


class MetricSet:
    """A registry, and a row of the page of metrics for each metric that is added."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        #: In the order of the page.
        self.documented: list[Documented] = []

    def counter(self, name: str, meaning: str, *labels: str) -> Counter:
        """Add a counter, whose name ends in _total."""
        self.documented.append(Documented(name, "counter", meaning, labels))
        return Counter(name.removesuffix("_total"), meaning, labels, registry=self.registry)

    def gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        """Add a gauge."""
        self.documented.append(Documented(name, "gauge", meaning, labels))
        return Gauge(name, meaning, labels, registry=self.registry)

    def histogram(self, name: str, meaning: str, buckets: Sequence[float], *labels: str) -> Histogram:
        """Add a histogram with these upper bounds."""
        self.documented.append(Documented(name, "histogram", meaning, labels))
        return Histogram(name, meaning, labels, buckets=buckets, registry=self.registry)


_WORKER = MetricSet()
_counter, _gauge, _histogram = _WORKER.counter, _WORKER.gauge, _WORKER.histogram

#: The registry of a worker process, with the client library's `process_` metrics.
REGISTRY = _WORKER.registry
#: Every metric of a worker, in the order of the page.
DOCUMENTED = _WORKER.documented

_SECONDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
    30,
    60,
    120,
    300,
    900,
    3600,
)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_TWENTIETHS = tuple(number / 20 for number in range(1, 21))

CHECKS = _counter(
    "dnf_checks_total",
    "Checks that this process judged or rejected, by queue, outcome (real, review, generated, rejected) and"
    " reason of a rejection.",
    "queue",
    "outcome",
    "reason",
)
STAGE_SECONDS = _histogram(
    "dnf_stage_seconds",
    "Seconds of a check in each stage; dnf and classify are those of its whole batch, total excludes"
    " queue_wait.",
    _SECONDS,
    "stage",
)
BATCH_SIZE = _histogram("dnf_batch_size", "Pictures in one forward pass.", _BATCHES)
SCORE = _histogram("dnf_score", "Calibrated probability of generated, 0..1; watch its drift.", _TWENTIETHS)
IN_FLIGHT = _gauge("dnf_checks_in_flight", "Checks that this process works on.")
REDELIVERIES = _counter("dnf_redeliveries_total", "Attempts at a check after its first.")
RETRIES = _counter(
    "dnf_retries_total",
    f"Checks that were retried or requeued; reason is one of {', '.join(get_args(RetryReason))}.",
    "reason",
)
DEAD_LETTERS = _counter("dnf_dead_letters_total", "Dead letters that this process wrote.", "reason")
ENTRIES_SKIPPED = _counter(
    "dnf_stream_entries_skipped_total",
    "Entries of the verdict stream that this consumer cannot read; reason is unknown_type (a later version)"
    " or unreadable.",
    "reason",
)
CACHE_HITS = _counter("dnf_cache_hits_total", "Checks answered from the verdict cache.")
MODEL_INFO = _gauge(
    "dnf_model_info", "1, with the detector in its labels.", "name", "version", "digest", "device", "dtype"
)
WARM_UP_RATE = _gauge(
    "dnf_warm_up_pictures_per_second",
    "Pictures per second that the networks did when they were warmed up, a shadow's work included.",
)
BATCHER_STALLED = _gauge(
    "dnf_batcher_stalled_seconds",
    "Seconds that the model thread has spent on its present batch; 0 when idle.",
)
INTAKE_PAUSED = _gauge(
    "dnf_intake_paused", "1 while this process takes no checks because the broker is nearly full, else 0."
)
SHADOW_DIFFERENCE = _histogram(
    "dnf_shadow_score_difference",
    "Score of the shadow bundle minus that of the serving one, -1..1.",
    (-1, -0.5, -0.2, -0.1, -0.05, -0.02, 0.02, 0.05, 0.1, 0.2, 0.5, 1),
)
SHADOW_DISAGREEMENTS = _counter(
    "dnf_shadow_disagreements_total",
    "Checks on which the shadow bundle's verdict differs, by both verdicts.",
    "serving",
    "shadow",
)
SHADOW_FAILURES = _counter("dnf_shadow_failures_total", "Checks that the shadow bundle gave no score.")

_queue: ContextVar[str] = ContextVar("queue", default="other")


@contextmanager
def check_in_flight(queue: str | None) -> Iterator[None]:
    """Count the block as a check in flight; counts inside it carry this queue."""
    token = _queue.set(queue if queue in QUEUES else "other")
    try:
        with IN_FLIGHT.track_inprogress():
            yield
    finally:
        _queue.reset(token)


def count_check(
    outcome: Outcome, durations_ms: Mapping[str, float], *, reason: str = "", score: float | None = None
) -> None:
    """Count a check that has its event, and observe the milliseconds of its stages."""
    CHECKS.labels(_queue.get(), outcome, reason).inc()
    for stage, milliseconds in durations_ms.items():
        STAGE_SECONDS.labels(stage).observe(milliseconds / 1000)
    if score is not None:
        SCORE.observe(score)


def counted_batches(run: Callable[[Sequence[Item]], list[Result]]) -> Callable[[list[Item]], list[Result]]:
    """Return `run`, which then observes the size of every batch."""

    def counted(items: list[Item]) -> list[Result]:
        BATCH_SIZE.observe(len(items))
        return run(items)

    return counted


# A rate needs a zero before the first increment.
for _name in QUEUES:
    for _outcome in ("real", "review", "generated"):
        CHECKS.labels(_name, _outcome, "")
for _stage in (*get_args(Stage), "publish"):
    STAGE_SECONDS.labels(_stage)
for _reason in get_args(RetryReason):
    RETRIES.labels(_reason)
for _reason in get_args(DeadLetterReason):
    DEAD_LETTERS.labels(_reason)
for _reason in ("unknown_type", "unreadable"):
    ENTRIES_SKIPPED.labels(_reason)
ProcessCollector(registry=REGISTRY)
