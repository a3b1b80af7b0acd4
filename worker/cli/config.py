"""dnf-worker config: the settings in force."""

import click
from rich.table import Table

from detector.terminal import Console, echo_json, shown
from worker.cli.errors import current_settings
from worker.settings import Settings


@click.command(epilog="\b\nExample:\n  dnf-worker config --json")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def config(*, as_json: bool) -> None:
    """Show the settings in force, secrets masked."""
    values = current_settings().shown()
    if as_json:
        echo_json(values, indent=2)
        return
    table = Table("Variable", "Value", "Meaning")
    for name, value in values.items():
        table.add_row(f"DNF_{name.upper()}", shown(value), Settings.model_fields[name].description)
    Console().print(table)
