"""dnf-worker doctor: look at settings, services and machine before workers rely on them."""

import json
import sys

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from worker.cli.errors import settings_in_force
from worker.operations.doctor.check import Check, Outcome
from worker.telemetry.logs import SecretMask

_COLOURS: dict[Outcome, str] = {"ok": "green", "warning": "yellow", "fault": "red"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One object.")
def doctor(*, as_json: bool) -> None:
    """Check settings, broker, object store and detector; say what is wrong and what to set.

    Exit status: 0 when nothing is at fault, warnings or not; 1 when anything is; 2 for wrong usage.
    """
    from worker.operations.doctor.examination import examine

    settings = settings_in_force()
    mask = SecretMask(settings.secrets())
    # What the network says of itself may quote an address with its password.
    checks = [check.model_copy(update={"wrong": mask.masked(check.wrong)}) for check in examine(settings)]
    worst = _worst(checks)
    if as_json:
        click.echo(
            json.dumps({"outcome": worst, "checks": [check.model_dump() for check in checks]}, indent=2)
        )
    else:
        Console().print(_table(checks))
    sys.exit(int(worst == "fault"))


def _worst(checks: list[Check]) -> Outcome:
    found = {check.outcome for check in checks}
    if "fault" in found:
        return "fault"
    return "warning" if "warning" in found else "ok"


def _table(checks: list[Check]) -> Table:
    table = Table("Check", "Outcome", "Seen", "What is wrong, and what to set")
    for check in checks:
        advice = f"{check.wrong} Set: {check.mend}." if check.mend else ""
        colour = _COLOURS[check.outcome]
        table.add_row(escape(check.name), f"[{colour}]{check.outcome}[/]", escape(check.seen), escape(advice))
    return table
