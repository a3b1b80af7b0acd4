"""dnf-worker database: the schema and the audit in PostgreSQL."""

import click

from detector.terminal import Group, echo
from worker.cli.errors import WrongUsageError, current_settings
from worker.database.errors import DatabaseUnavailableError, SchemaError


@click.group(cls=Group)
def database() -> None:
    """Migrate the schema, verify the audit."""


@database.command()
def migrate() -> None:
    """Apply the missing migrations as the owner, and let the service's role use the tables.

    Needs DNF_DATABASE_OWNER_URL and DNF_DATABASE_URL. Running it again, or twice at once, is safe.
    """
    from worker.database import schema
    from worker.telemetry.logs import configure_logs

    settings = current_settings()
    configure_logs(settings)
    if settings.database_owner_url is None or settings.database_url is None:
        raise WrongUsageError("DNF_DATABASE_OWNER_URL and DNF_DATABASE_URL must both be set")
    try:
        applied = schema.migrate(
            settings.database_owner_url.get_secret_value(), settings.database_url.get_secret_value()
        )
    except (DatabaseUnavailableError, SchemaError) as error:
        raise click.ClickException(str(error)) from error
    for name in applied:
        echo(f"applied {name}")
    if not applied:
        echo("nothing to apply")


@database.command("verify-audit")
@click.option(
    "--head", metavar="NUMBER:DIGEST", help="The head of an earlier report: finds rows cut off at the end."
)
def verify_audit(*, head: str | None) -> None:
    """Verify that no row of the audit was changed or removed; exit status 1 if one was.

    Prints the number of rows and the head of their chain: keep it elsewhere.
    """
    from worker.database.database import Database
    from worker.reviews.audit import verify

    try:
        with Database.open(current_settings().database) as opened:
            report = verify(opened, head=head)
    except (DatabaseUnavailableError, SchemaError) as error:
        raise click.ClickException(str(error)) from error
    if report.fault:
        raise click.ClickException(f"the audit does not hold: {report.fault}")
    echo(f"{report.records} records, head {report.head}")
