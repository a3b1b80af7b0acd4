"""What a worker process shows of itself while it runs: probes, metrics, its sign of life."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from structlog.contextvars import bind_contextvars, clear_contextvars

from worker.broker.dead_letters import check_id_in
from worker.process.health import Health
from worker.process.heartbeat import Heartbeat
from worker.telemetry import tracing
from worker.telemetry.http import Endpoints
from worker.telemetry.metrics import BATCHER_STALLED, MODEL_INFO, REDELIVERIES, REGISTRY, check_in_flight

if TYPE_CHECKING:
    from celery import Celery

    from worker.checks.service import Service
    from worker.settings import Settings


class Observation:
    """The probes and metrics of this process, from before its model is loaded."""

    def __init__(self, settings: "Settings", closing: ExitStack) -> None:
        self._settings = settings
        self._closing = closing
        self.health = Health(stall_limit_seconds=settings.check_deadline_seconds)
        if settings.http_port:
            probes = {
                "/livez": self.health.live,
                "/readyz": self.health.ready,
                "/startupz": self.health.started,
            }
            closing.enter_context(Endpoints(settings.http_host, settings.http_port, REGISTRY, probes))

    def attach(self, service: "Service", app: "Celery") -> None:
        """Watch a service whose model is loaded, and the application before it starts."""
        self.health.watch(service.batcher)
        self.health.attach(app)
        BATCHER_STALLED.set_function(lambda: service.batcher.stalled_seconds)
        model = service.model
        MODEL_INFO.labels(
            model.name, model.version, model.digest, service.detector.device, service.detector.dtype
        ).set(1)
        self._closing.callback(Heartbeat(self._settings, service.name, self.health).close)


@contextmanager
def observed(settings: "Settings") -> Iterator[Observation]:
    """Show this process while the block runs. Raises `EndpointsUnavailableError`."""
    with ExitStack() as closing:
        closing.enter_context(tracing.exported_traces())
        yield Observation(settings, closing)


@contextmanager
def check_observed(request: Any, message: object, worker: str) -> Iterator[None]:
    """Run the block as a check in flight: counted, a span of its message's trace, named in every log line.

    `request` is Celery's.
    """
    queue = (request.delivery_info or {}).get("routing_key")
    trace = (request.headers or {}).get("traceparent")
    check_id = check_id_in(message)
    with check_in_flight(queue), tracing.continued(trace, "check", **{"dnf.worker": worker}):
        bind_contextvars(check_id=check_id, worker=worker, queue=queue)
        if current := tracing.traceparent():
            bind_contextvars(trace_id=current.split("-")[1])
        tracing.describe(**{"dnf.check_id": check_id or "", "dnf.queue": queue or ""})
        try:
            yield
        finally:
            clear_contextvars()


def attempt_observed(number: int) -> None:
    """Note that the check of this thread is begun for the `number`th time."""
    bind_contextvars(attempt=number)
    tracing.describe(**{"dnf.attempt": number})
    if number > 1:
        REDELIVERIES.inc()
