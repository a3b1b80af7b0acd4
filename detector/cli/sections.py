"""Help of a command with its options in sections."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])
_OTHER = "Options"


class SectionedCommand(click.Command):
    """A command whose help lists options under the titles that `section` gave them."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections in the order of their first option."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if isinstance(parameter, click.Option) and record:
                sections.setdefault(getattr(parameter, "section", _OTHER), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def section(title: str, *options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    """Return a decorator that adds options to a command, under a title in its help."""

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
            command.__click_params__[-1].section = title  # type: ignore[attr-defined]
        return command

    return decorate
