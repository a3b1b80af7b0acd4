"""dnf-worker run: the worker processes of this machine."""

import os
import signal
import sys

import click

from worker.cli.errors import current_settings
from worker.process.exit import exit_process
from worker.settings import Settings, unknown_variables
from worker.telemetry.logs import configure_logs, get_logger


@click.command(epilog="\b\nExample:\n  DNF_HTTP_PORT=9100 dnf-worker run --processes 2")
@click.option("--processes", type=click.IntRange(min=1), help="Worker processes; default: DNF_PROCESSES.")
@click.option("--unsupervised", is_flag=True, help="Run one process, without a supervisor that restarts it.")
@click.option("--supervised", "descriptor", type=int, hidden=True)
@click.option(
    "--burst", is_flag=True, hidden=True, help="Run one process, which ends when the queues are empty."
)
def run(*, processes: int | None, unsupervised: bool, descriptor: int | None, burst: bool) -> None:
    """Start workers: one process for each visible GPU, or one on a CPU; failed processes are restarted.

    The model is loaded and warmed up before the first check is taken. SIGTERM starts a graceful shutdown; a
    second one stops at once.
    """
    settings = current_settings()
    configure_logs(settings)
    if descriptor is None and (unknown := unknown_variables(os.environ)):
        get_logger(__name__).warning("unknown_settings_ignored", variables=unknown)
    if descriptor is None and not unsupervised and not burst:
        from worker.process.supervisor import own_command, supervise

        chosen = settings.model_copy(update={"processes": processes or settings.processes})
        sys.exit(supervise(chosen, own_command()))
    exit_process(_run_process(settings, descriptor, burst=burst))


def _run_process(settings: Settings, descriptor: int | None, *, burst: bool) -> int:
    # Until `run_worker` handles the signals, the first process of a container would ignore SIGTERM.
    signal.signal(signal.SIGTERM, lambda *_: exit_process(os.EX_OK))
    # Importing the libraries of the model takes seconds, minutes on a busy machine.
    get_logger(__name__).info("worker_started", pid=os.getpid())
    from detector.bundle.files import BundleError
    from worker.broker.faults import BrokerRefusedError
    from worker.process.run import run_worker
    from worker.telemetry.http import EndpointsUnavailableError

    try:
        return run_worker(settings, supervisor_descriptor=descriptor, burst=burst)
    except (BrokerRefusedError, BundleError, EndpointsUnavailableError) as error:
        raise click.ClickException(str(error)) from error
