"""Text for a terminal: what comes from outside is shown with its control characters escaped.

Keys, field names, metadata and queue entries are written by others. Printed as they are, they could move the
cursor, change the title or forge a line. Every command prints through this module.
"""

import importlib
import json
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click
import rich.console
import rich.markup
from rich.text import Text

#: The exit status after Ctrl-C.
INTERRUPTED = 130


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
        echo_fields(*heading, *body)
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


def echo_fields(*fields: str) -> None:
    """Print a record as one line for a pipe: its fields separated by tabs, `-` for an empty one."""
    click.echo("\t".join(escaped(field.strip()) or "-" for field in fields))


def json_line(value: object, *, indent: int | None = None) -> str:
    """Return a JSON value as printable ASCII, in one line unless `indent` is given."""
    return json.dumps(value, indent=indent).replace("\x7f", "\\u007f")


def echo_json(value: object, *, indent: int | None = None) -> None:
    """Print a JSON value in printable ASCII, on one line unless `indent` is given."""
    click.echo(json_line(value, indent=indent))


@dataclass(frozen=True)
class LazyCommand:
    """A command whose module is imported when it is called."""

    #: The module, and the name of the command in it.
    module: str
    attribute: str
    #: The first sentence of its help, without a full stop.
    summary: str

    def load(self) -> click.Command:
        """Import the module and return the command."""
        command = getattr(importlib.import_module(self.module), self.attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{self.module}.{self.attribute} is not a command")
        return command


class Group(click.Group):
    """A group whose commands are imported when they are called, listed in the order in which they are given.

    An error message is shown on one line, without control characters; so is a file that cannot be read or
    written. Ctrl-C ends a command that does not handle it with one line and status 130.
    """

    def __init__(
        self, *arguments: Any, lazy: Mapping[str, LazyCommand] | None = None, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self._lazy = dict(lazy or {})

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names of the commands."""
        return list({**self._lazy, **self.commands})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, or None if there is none of this name."""
        if cmd_name in self._lazy and cmd_name not in self.commands:
            self.add_command(self._lazy[cmd_name].load(), cmd_name)
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands into the help, without importing them."""
        rows = [
            (
                name,
                self._lazy[name].summary if name in self._lazy else self.commands[name].get_short_help_str(),
            )
            for name in self.list_commands(ctx)
        ]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            vars(error)["message"] = escaped(error.message)
            raise
        except KeyboardInterrupt:
            echo("Interrupted.", err=True)
            ctx.exit(INTERRUPTED)
        except OSError as error:
            # Only those of files name one; click itself ends quietly when the reader of a pipe has gone.
            if error.filename is None:
                raise
            message = f"{error.filename}: {error.strerror or type(error).__name__}"
            raise click.ClickException(escaped(message)) from error
