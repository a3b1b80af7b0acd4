"""What a worker process shows of itself while it runs: probes, metrics, its sign of life."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from worker.endpoints import Endpoints
from worker.gpu_metrics import GpuCollector
from worker.health import Health
from worker.heartbeat import Heartbeat
from worker.metrics import BATCHER_STALLED, MODEL_INFO, REGISTRY

if TYPE_CHECKING:
    from celery import Celery

    from worker.service import Service
    from worker.settings import Settings


class Observation:
    """The probes and metrics of this process, from before its model is loaded."""

    def __init__(self, settings: "Settings", closing: ExitStack) -> None:
        self._settings = settings
        self._closing = closing
        self.health = Health(stall_limit_seconds=settings.check_deadline_seconds)
        if settings.http_port:
            if gpus := GpuCollector.found():
                REGISTRY.register(gpus)
            probes = {
                "/livez": self.health.live,
                "/readyz": self.health.ready,
                "/startupz": self.health.started,
            }
            closing.enter_context(Endpoints(settings.http_host, settings.http_port, REGISTRY, probes))

    def attach(self, service: "Service", app: "Celery") -> None:
        """Watch a service whose model is loaded, and the application before it starts."""
        self.health.attach(app, service.batcher)
        BATCHER_STALLED.set_function(lambda: service.batcher.stalled_seconds)
        model = service.model
        MODEL_INFO.labels(
            model.name, model.version, model.digest, service.detector.device, service.detector.dtype
        ).set(1)
        self._closing.callback(Heartbeat(self._settings, service.name, self.health).close)


@contextmanager
def observed(settings: "Settings") -> Iterator[Observation]:
    """Show this process while the block runs. Raises `EndpointsUnavailable`."""
    with ExitStack() as closing:
        yield Observation(settings, closing)
