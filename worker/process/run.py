"""One worker process, from its start to its end."""

import os
import signal
import threading
import time
from contextlib import ExitStack
from functools import partial
from typing import Any

import redis
from celery.apps.worker import Worker
from celery.signals import worker_ready

from detector.bundle.files import BundleError
from detector.detector import Detector
from detector.images.memory import share_one_heap
from worker.broker.app import create_app
from worker.broker.connection import connect
from worker.broker.consumer import Consumer
from worker.broker.faults import BrokerRefusedError, verify_trust
from worker.broker.keys import UNACKED
from worker.broker.transport import UnacknowledgedMessages
from worker.checks.service import Service
from worker.checks.task import register
from worker.contract.messages import QUEUES
from worker.process.broker_watch import BrokerWatch
from worker.process.health import Health
from worker.process.heartbeat import Heartbeat
from worker.process.shutdown import Shutdown
from worker.process.supervisor import WorkerLink
from worker.process.watchdog import Watchdog
from worker.settings import Settings
from worker.telemetry.http import Endpoints, EndpointsUnavailableError
from worker.telemetry.logs import get_logger
from worker.telemetry.metrics import BATCHER_STALLED, MODEL_INFO, REGISTRY, WARM_UP_RATE
from worker.telemetry.tracing import exported_traces

log = get_logger(__name__)


class _Worker(Worker):
    """Celery's worker, which leaves the signals to `Shutdown`."""

    def install_platform_tweaks(self, worker: Any) -> None:
        """No-op: it would install signal handlers."""


def run_worker(
    settings: Settings,
    *,
    detector: Detector | None = None,
    supervisor_descriptor: int | None = None,
    burst: bool = False,
) -> int:
    """Take checks until the process is told to shut down; return its exit status.

    `detector` replaces the bundle of the settings; `supervisor_descriptor` is the socket of a supervisor; a
    `burst` ends when every queue is empty and every message acknowledged.
    Raises `BrokerRefusedError`, `BundleError` and `EndpointsUnavailableError`.
    """
    share_one_heap()
    link = None if supervisor_descriptor is None else WorkerLink(supervisor_descriptor)
    unacknowledged = UnacknowledgedMessages()
    health = Health(stall_limit_seconds=settings.check_deadline_seconds)
    shutdown = Shutdown(
        unacknowledged, grace_seconds=settings.shutdown_grace_seconds, on_signal=health.shutting_down
    )
    with ExitStack() as stack:
        try:
            # 1. Traces and probes, before the model loads.
            stack.enter_context(exported_traces())
            if settings.http_port:
                stack.enter_context(
                    Endpoints(settings.http_host, settings.http_port, REGISTRY, health.probes())
                )

            # 2. A broker that does not trust us, or a bundle that cannot be loaded, ends the process here.
            verify_trust(settings.broker)
            service = Service.start(settings, unacknowledged, detector)
        except (BrokerRefusedError, BundleError, EndpointsUnavailableError):
            if link:
                link.refused()
            raise
        _describe_model(service)

        # 3. What watches the process. The stack ends it in the reverse order, after the last check.
        health.watch(service.batcher)
        heartbeat = Heartbeat(
            settings.broker, service.name, health, pictures_per_second=service.pictures_per_second
        )
        stack.callback(heartbeat.close)
        watchdog = Watchdog(service.batcher, settings.model_stall_seconds)
        stack.callback(watchdog.stop)
        stack.callback(service.stop)
        stack.enter_context(BrokerWatch(settings, unacknowledged))

        # 4. Celery takes checks, until `Shutdown` stops its event loop and the last check has ended.
        app = create_app(settings, unacknowledged)
        register(app, service)
        health.attach(app)

        def ready(sender: Any, **_: object) -> None:
            shutdown.ready(sender.controller)
            health.became_ready()
            log.info("worker_ready", worker=service.name, queues=list(QUEUES), threads=settings.threads)
            if link:
                link.ready()
            if burst:
                threading.Thread(target=_end_when_drained, args=(settings,), daemon=True).start()

        worker_ready.connect(ready, weak=False)
        worker = _Worker(
            app=app,
            pool="threads",
            consumer_cls=partial(Consumer, on_stop=shutdown.consumer_stopped),
            concurrency=settings.threads,
            queues=list(QUEUES),
            loglevel=settings.log_level,
            without_gossip=True,
            without_mingle=True,
            # Nobody reads Celery's events; the probes have a heartbeat of their own.
            without_heartbeat=True,
            quiet=True,
        )
        worker.start()
    status = worker.exitcode or 0
    log.info("worker_stopped", worker=service.name, status=status)
    return status


def _end_when_drained(settings: Settings) -> None:
    with connect(settings.broker) as client:
        while any(message_counts(client)):
            time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGTERM)


def message_counts(client: redis.Redis) -> list[int]:
    """Return the numbers of unacknowledged messages and of those on each queue, all at one moment.

    A message that is taken or requeued between two commands would be in neither.
    """
    with client.pipeline() as counts:
        counts.hlen(UNACKED)
        for name in QUEUES:
            counts.llen(name)
        return [int(count) for count in counts.execute()]


def _describe_model(service: Service) -> None:
    model, detector = service.model, service.detector
    log.info(
        "model_loaded",
        model=f"{model.name} {model.version}",
        digest=model.digest,
        device=detector.device,
        dtype=detector.dtype,
    )
    WARM_UP_RATE.set(service.pictures_per_second)
    MODEL_INFO.labels(model.name, model.version, model.digest, detector.device, detector.dtype).set(1)
    BATCHER_STALLED.set_function(lambda: service.batcher.stalled_seconds)
