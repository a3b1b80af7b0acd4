"""The seam around a check on which its metrics, its span and its log context hang."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from structlog.contextvars import bind_contextvars, clear_contextvars

from worker.contract.messages import Rejection, Verdict
from worker.telemetry import tracing
from worker.telemetry.logs import get_logger
from worker.telemetry.metrics import CACHE_HITS, REDELIVERIES, check_in_flight, count_check

log = get_logger(__name__)


@dataclass(frozen=True)
class CheckOutcome:
    """What became of a check that has its event."""

    #: The data of the event.
    data: Verdict | Rejection
    #: Whether this attempt published the event; False when an earlier one did.
    published: bool
    #: Milliseconds by stage, `publish` among them.
    durations_ms: Mapping[str, float]


class Observation:
    """Observes one attempt at a check, from the thread that runs it."""

    def attempt_started(self, number: int) -> None:
        """Name the attempt in every log line and in the span."""
        bind_contextvars(attempt=number)
        tracing.describe(**{"dnf.attempt": number})
        if number > 1:
            REDELIVERIES.inc()

    def answered_before(self, *, published_again: bool) -> None:
        """Log a check that had its event before this attempt."""
        log.info("check_already_answered", published_again=published_again)

    def published(self, outcome: CheckOutcome) -> None:
        """Count and log the outcome of a check."""
        data = outcome.data
        if isinstance(data, Rejection):
            count_check("rejected", outcome.durations_ms, reason=data.reason)
            log.info(
                "image_rejected",
                reason=data.reason,
                durations_ms=data.durations_ms,
                published=outcome.published,
            )
            return
        count_check(data.verdict, outcome.durations_ms, score=data.score)
        if data.cached:
            CACHE_HITS.inc()
        log.info(
            "image_checked",
            verdict=data.verdict,
            score=round(data.score, 4),
            model=f"{data.model.name} {data.model.version}",
            durations_ms=data.durations_ms,
            bytes=data.picture.bytes,
            batch_size=data.batch_size,
            cached=data.cached,
            published=outcome.published,
        )


@contextmanager
def check_observed(request: Any, worker: str) -> Iterator[Observation]:
    """Run the block as a check in flight: counted, a span of its message's trace, named in every log line.

    `request` is Celery's.
    """
    queue = (request.delivery_info or {}).get("routing_key")
    headers = request.headers or {}
    trace, check_id = headers.get("traceparent"), headers.get("check_id")
    with check_in_flight(queue), tracing.continued(trace, "check", **{"dnf.worker": worker}):
        bind_contextvars(check_id=check_id, worker=worker, queue=queue)
        if current := tracing.traceparent():
            bind_contextvars(trace_id=current.split("-")[1])
        tracing.describe(**{"dnf.check_id": check_id or "", "dnf.queue": queue or ""})
        try:
            yield Observation()
        finally:
            clear_contextvars()
