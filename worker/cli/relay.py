"""dnf-worker relay: verdicts to reviews, decisions to their stream."""

import os
import signal
import threading

import click

from worker.cli.errors import current_settings
from worker.settings import unknown_variables


@click.command(epilog="\b\nExample:\n  DNF_DATABASE_URL=postgresql://moderation@db/reviews dnf-worker relay")
def relay() -> None:
    """Carry verdicts to the reviews in PostgreSQL, and people's decisions back, until SIGTERM.

    Any number of relays may run. With DNF_DATABASE_OWNER_URL the schema is migrated first.
    """
    from worker.broker.faults import BrokerRefusedError
    from worker.database.errors import DatabaseUnavailableError, SchemaError
    from worker.relay.run import run_relay
    from worker.telemetry.http import EndpointsUnavailableError
    from worker.telemetry.logs import configure_logs, get_logger

    settings = current_settings()
    configure_logs(settings)
    if unknown := unknown_variables(os.environ):
        get_logger(__name__).warning("unknown_settings_ignored", variables=unknown)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        run_relay(settings, stop)
    except (
        BrokerRefusedError,
        DatabaseUnavailableError,
        EndpointsUnavailableError,
        SchemaError,
    ) as error:
        raise click.ClickException(str(error)) from error
