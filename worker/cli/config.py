"""dnf-worker config: the settings in force."""

import json

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from worker.cli.errors import current_settings
from worker.settings import Settings


@click.command(epilog="\b\nExample:\n  dnf-worker config --json")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def config(*, as_json: bool) -> None:
    """Show the settings in force, secrets masked."""
    values = current_settings().shown()
    if as_json:
        click.echo(json.dumps(values, indent=2))
        return
    table = Table("Variable", "Value", "Meaning")
    for name, value in values.items():
        table.add_row(f"DNF_{name.upper()}", escape(value), Settings.model_fields[name].description)
    Console().print(table)
