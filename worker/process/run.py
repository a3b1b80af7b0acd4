"""One worker process: model loaded and warmed, then Celery's threads."""

from collections.abc import Callable

from celery.apps.worker import Worker
from celery.signals import worker_ready, worker_shutting_down

from detector.detector import Detector
from worker.broker.app import create_app
from worker.broker.consumer import Consumer
from worker.checks.observation import Observation, observed
from worker.checks.service import Service
from worker.checks.task import register
from worker.contract.messages import QUEUES
from worker.process.broker_watch import BrokerWatch
from worker.process.shutdown import OrderlyStop
from worker.process.watchdog import Watchdog
from worker.settings import Settings
from worker.telemetry.logs import get_logger

log = get_logger(__name__)


def run_worker(
    settings: Settings, *, detector: Detector | None = None, on_ready: Callable[[], None] = lambda: None
) -> int:
    """Consume checks until the process is told to stop; return its exit status.

    `detector` takes the place of the bundle in the settings; `on_ready` is called once the model is warm and
    checks are taken. Raises `BundleError` and `EndpointsUnavailableError`.
    """
    with observed(settings) as observation:
        return _run(settings, observation, detector, on_ready)


def _run(
    settings: Settings, observation: Observation, detector: Detector | None, on_ready: Callable[[], None]
) -> int:
    service = Service.start(settings, detector)
    log.info(
        "model_loaded",
        model=f"{service.model.name} {service.model.version}",
        digest=service.model.digest,
        device=service.detector.device,
        dtype=service.detector.dtype,
    )
    app = create_app(settings)
    register(app, service)
    observation.attach(service, app)
    OrderlyStop(service.in_work, grace_seconds=settings.shutdown_grace_seconds).attach(app)
    watchdog = Watchdog(service.batcher, settings.model_stall_seconds)

    def ready(**_: object) -> None:
        log.info("worker_ready", worker=service.name, queues=list(QUEUES), threads=settings.threads)
        on_ready()

    def stopping(**_: object) -> None:
        log.info("worker_stopping", worker=service.name)

    worker_ready.connect(ready, weak=False)
    worker_shutting_down.connect(stopping, weak=False)
    worker = Worker(
        app=app,
        pool="threads",
        consumer_cls=Consumer,
        concurrency=settings.threads,
        queues=list(QUEUES),
        loglevel=settings.log_level,
        without_gossip=True,
        without_mingle=True,
        # Its events have no reader; the probes have a heartbeat of their own.
        without_heartbeat=True,
        quiet=True,
    )
    try:
        with BrokerWatch(settings):
            worker.start()
    finally:
        service.stop()
        watchdog.stop()
    log.info("worker_stopped", worker=service.name, status=worker.exitcode or 0)
    return worker.exitcode or 0
