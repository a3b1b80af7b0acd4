"""dnf-worker web: the page for moderators and the HTTP API."""

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, cast

import click

from detector.terminal import echo
from worker.cli.errors import WrongUsageError, current_settings
from worker.settings import ROLES, Settings, unknown_variables

if TYPE_CHECKING:
    from worker.telemetry.http import Endpoints
    from worker.web.identity import Role
    from worker.web.site import Site


@click.command(epilog="\b\nExample:\n  DNF_WEB_TRUSTED_PROXIES=10.0.0.0/8 dnf-worker web")
@click.option(
    "--link",
    "links",
    multiple=True,
    metavar="ROLES",
    callback=lambda _context, _option, values: [_roles(value) for value in values],
    help="Print a one-time link for a person with these roles, joined by +; can be repeated. On a loopback"
    " address alone.",
)
def web(*, links: Sequence[Sequence["Role"]]) -> None:
    """Serve the page for moderators and the HTTP API on DNF_WEB_PORT until SIGTERM.

    Any number of processes may serve one database.
    """
    from worker.database.database import Database
    from worker.database.errors import DatabaseUnavailableError, SchemaError
    from worker.telemetry.http import EndpointsUnavailableError
    from worker.telemetry.logs import configure_logs, get_logger
    from worker.web.app import create_app
    from worker.web.identity import OneTimeLinks
    from worker.web.server import AddressUnavailableError, Listener, serve

    # The server raises the signal that stopped it again when it has finished.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    settings = current_settings()
    configure_logs(settings)
    if unknown := unknown_variables(os.environ):
        get_logger(__name__).warning("unknown_settings_ignored", variables=unknown)
    if not links and not settings.web_trusted_proxies and not settings.web_jwt_keys:
        get_logger(__name__).warning(
            "people_cannot_come_in", remedy="set DNF_WEB_TRUSTED_PROXIES or DNF_WEB_JWT_KEYS, or give --link"
        )
    try:
        listener = Listener.bind(settings.web_host, settings.web_port)
        if links and not listener.loopback:
            raise WrongUsageError("--link needs a loopback address: DNF_WEB_HOST=127.0.0.1")
        with ExitStack() as cleanup:
            database = cleanup.enter_context(Database.open(settings.database))
            one_time = OneTimeLinks() if links else None
            app = create_app(settings, database, links=one_time)
            cleanup.enter_context(_endpoints(settings, app.state.site))
            if one_time:
                host = f"[{settings.web_host}]" if ":" in settings.web_host else settings.web_host
                for roles in links:
                    secret = one_time.create(*roles)
                    echo(f"{'+'.join(roles)}: http://{host}:{listener.port}/link?secret={secret}")
            serve(app, listener)
    except (AddressUnavailableError, EndpointsUnavailableError) as error:
        raise click.ClickException(str(error)) from error
    except (SchemaError, DatabaseUnavailableError) as error:
        raise click.ClickException(str(error)) from error


def _roles(text: str) -> list["Role"]:
    roles = text.split("+")
    if unknown := set(roles) - set(ROLES):
        raise click.BadParameter(f"{', '.join(sorted(unknown))}: the roles are {', '.join(ROLES)}")
    return cast("list[Role]", roles)


def _endpoints(settings: Settings, site: "Site") -> "ExitStack | Endpoints":
    """Serve probes and metrics, where a port is set for them."""
    from worker.telemetry.http import Answer, Endpoints
    from worker.web.metrics import web_registry

    if not settings.http_port:
        return ExitStack()

    def live() -> Answer:
        return Answer(ok=True, reason="alive", figures={})

    def ready() -> Answer:
        answers = site.database.answers()
        reason = "PostgreSQL answers" if answers else "PostgreSQL does not answer"
        return Answer(ok=answers, reason=reason, figures={})

    probes = {"/livez": live, "/readyz": ready, "/startupz": live}
    return Endpoints(settings.http_host, settings.http_port, web_registry(site), probes)
