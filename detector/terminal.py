"""Text for a terminal: what comes from outside is shown with its control characters escaped.

Keys, field names, metadata and queue entries are written by others. Printed as they are, they could move the
cursor, change the title or forge a line. Every command prints through this module.
"""

import json
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

import click
import rich.console
import rich.markup
from rich.text import Text


def escaped(text: str, *, newlines: bool = False) -> str:
    r"""Return text with each character that is not printable as its escape, such as `\x1b` or `\u202e`.

    These are control, formatting (also bidirectional) and unassigned characters, lone surrogates, and every
    space but the plain one; with `newlines` a line break stays one.
    """
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable() or (newlines and character == "\n")
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def shown(text: str, *, newlines: bool = False) -> str:
    """Return text from outside for a `Console`, without control characters or markup."""
    return rich.markup.escape(escaped(text, newlines=newlines))


class Console(rich.console.Console):
    """Rich's console, which escapes control characters in every string that it renders."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the text with its markup applied."""
        return super().render_str(escaped(text, newlines=True), **options)


def echo(line: str, *, err: bool = False) -> None:
    """Print one line, on standard error with `err`."""
    click.echo(escaped(line), err=err)


def echo_record(heading: Sequence[str], body: Sequence[str]) -> None:
    """Print one record of a list, with every id whole, so that it can be copied.

    On a terminal the heading is one line and each text of the body follows, wrapped between words. Elsewhere
    the record is one line: its fields separated by tabs, `-` for an empty one.
    """
    if not sys.stdout.isatty():
        fields = (escaped(field.strip()) or "-" for field in [*heading, *body])
        click.echo("\t".join(fields))
        return
    echo("  ".join(heading).rstrip())
    width = shutil.get_terminal_size().columns
    for text in filter(None, body):
        for line in textwrap.wrap(
            escaped(text),
            width,
            initial_indent="    ",
            subsequent_indent="    ",
            break_long_words=False,
            break_on_hyphens=False,
        ):
            click.echo(line)


def echo_json(value: object, *, indent: int | None = None) -> None:
    """Print a JSON value in printable ASCII, on one line unless `indent` is given."""
    click.echo(json.dumps(value, indent=indent).replace("\x7f", "\\u007f"))


class Group(click.Group):
    """A group of commands whose error messages are shown on one line, without control characters."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            vars(error)["message"] = escaped(error.message)
            raise
