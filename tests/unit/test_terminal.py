"""What comes from outside cannot write control characters to a terminal."""

import io
import json
import logging
import re
import sys

import click
import pytest
import structlog
from click.testing import CliRunner
from rich.table import Table

from detector.terminal import Console, Group, echo, echo_json, escaped, shown
from worker.settings import Settings
from worker.telemetry.logs import configure_logs, get_logger

# Escape sequences (a title, a colour), an 8-bit one, a forged line, a reversed text, a lone surrogate.
HOSTILE = "a\x1b]0;owned\x07\x1b[2J\x9b31m\rb\nreal 0.01 \u202egpj\u2066\u200b\ud800\x7f[red]c[/red]"
SHOWN = r"a\x1b]0;owned\x07\x1b[2J\x9b31m\rb\nreal 0.01 \u202egpj\u2066\u200b\ud800\x7f[red]c[/red]"
CONTROL = re.compile(r"[^\n\x20-\x7e\u2500-\u257f]")


def test_every_character_that_is_not_printable_is_escaped() -> None:
    """One line of printable characters; what is printable stays as it is."""
    assert escaped(HOSTILE) == SHOWN
    assert escaped("Grüße, 写真 🙂") == "Grüße, 写真 🙂"
    for code in range(0x110000):
        assert escaped(chr(code)).isprintable()


def test_a_console_escapes_what_a_command_forgot_to(capsys: pytest.CaptureFixture[str]) -> None:
    """In cells, titles and lines; a cell that was passed through `shown` has no markup either."""
    console = Console(file=io.StringIO(), width=200)
    table = Table("Column", title=HOSTILE)
    table.add_row(HOSTILE)
    table.add_row(shown(HOSTILE))
    console.print(table)
    console.print(HOSTILE)
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert not CONTROL.search(printed)
    assert SHOWN in printed
    echo(HOSTILE)
    assert capsys.readouterr().out == f"{SHOWN}\n"


@pytest.mark.parametrize("indent", [None, 2])
def test_json_is_printable_and_keeps_its_values(
    capsys: pytest.CaptureFixture[str], indent: int | None
) -> None:
    """A reader has the same value; a terminal has ASCII."""
    value = {"key": HOSTILE.replace("\ud800", ""), HOSTILE.replace("\ud800", ""): [1, None]}
    echo_json(value, indent=indent)
    printed = capsys.readouterr().out
    assert json.loads(printed) == value
    assert not CONTROL.search(printed)


def test_an_error_is_one_line() -> None:
    """Whatever the error quotes, in a group within the group too."""

    @click.group(cls=Group)
    def main() -> None: ...

    @main.command()
    def fail() -> None:
        raise click.ClickException(HOSTILE)

    finished = CliRunner().invoke(main, ["fail"])
    assert finished.exit_code == 1
    assert finished.output == f"Error: {SHOWN}\n"


def test_a_log_line_for_people_is_escaped(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Values, foreign messages and the text of an exception; the colours are the renderer's own."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    request.addfinalizer(structlog.reset_defaults)
    request.addfinalizer(lambda: root.handlers.__setitem__(slice(None), handlers))
    request.addfinalizer(lambda: root.setLevel(level))
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure_logs(Settings(log_format="console"))
    hostile = "\x1b]0;owned\x07\x9b"
    get_logger("test").info("image_checked", key=hostile, check={"id": hostile})
    logging.getLogger("foreign").warning("message %s", hostile)
    try:
        raise ValueError(hostile)  # noqa: TRY301
    except ValueError:
        get_logger("test").exception("failed")
    printed = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    assert printed.count("owned") >= 4
    assert not CONTROL.search(printed)
