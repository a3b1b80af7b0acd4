"""dnf-worker exporter: the metrics of queues, streams and fleet."""

import os
import signal
import threading

import click

from worker.cli.errors import current_settings
from worker.settings import unknown_variables

DEFAULT_PORT = 9808


@click.command(epilog="\b\nExample:\n  DNF_HTTP_PORT=9808 dnf-worker exporter")
def exporter() -> None:
    """Serve /metrics of queues, streams and fleet on DNF_HTTP_PORT (default 9808) until SIGTERM."""
    from worker.operations.exporter import QueueCollector, exporter_registry
    from worker.telemetry.http import Answer, Endpoints, EndpointsUnavailableError
    from worker.telemetry.logs import configure_logs, get_logger

    settings = current_settings()
    configure_logs(settings)
    if unknown := unknown_variables(os.environ):
        get_logger(__name__).warning("unknown_settings_ignored", variables=unknown)
    collector = QueueCollector(settings)

    def live() -> Answer:
        return Answer(ok=True, reason="alive", figures={})

    def ready() -> Answer:
        answers = collector.snapshot() is not None
        reason = "Redis answers" if answers else f"Redis does not answer: {collector.error}"
        return Answer(ok=answers, reason=reason, figures={})

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    probes = {"/livez": live, "/readyz": ready, "/startupz": live}
    try:
        endpoints = Endpoints(
            settings.http_host, settings.http_port or DEFAULT_PORT, exporter_registry(collector), probes
        )
    except EndpointsUnavailableError as error:
        raise click.ClickException(str(error)) from error
    with endpoints:
        stop.wait()
    collector.close()
