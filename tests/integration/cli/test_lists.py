"""The commands that list records, on a terminal of 80 columns and in a pipe."""

import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from fcntl import ioctl
from uuid import uuid4

import pytest
from click.testing import CliRunner

from tests.integration.client.conftest import rejection
from worker.broker.dead_letters import DeadLetters, dead_letter_of_check
from worker.broker.verdict_stream import VerdictStream
from worker.cli import main
from worker.contract.messages import InvalidMessageError
from worker.settings import Settings

DETAIL = "s3://test-uploads/2026/11/28/" + 80 * "k" + ".jpg: the store refuses every connection"
COMMANDS = {"dead letters": ["dead-letters", "list"], "verdicts": ["verdicts"]}
CHECK_IDS = [str(uuid4()), str(uuid4())]


@pytest.fixture(scope="module")
def url(new_database: Callable[[], str]) -> str:
    """Provide a broker with two dead letters and two rejections."""
    url = new_database()
    settings = Settings(redis_url=url)
    with (
        closing(DeadLetters.connect(settings)) as dead_letters,
        closing(VerdictStream.connect(settings)) as verdict_stream,
    ):
        for check_id in CHECK_IDS:
            invalid = InvalidMessageError("storage_unavailable", DETAIL, check_id)
            dead_letters.write(
                dead_letter_of_check(f'{{"check_id": "{check_id}"}}', "image-checks", invalid, 21)
            )
            event = rejection(check_id, reason="bucket_not_allowed", detail="Not allowed.")
            verdict_stream.publish(event, message_id="m")
    return url


@pytest.fixture(scope="module")
def on_a_terminal(url: str) -> dict[str, list[str]]:
    """Return the lines that each command writes to a terminal of 80 columns."""
    with ThreadPoolExecutor(len(COMMANDS)) as threads:
        return dict(zip(COMMANDS, threads.map(lambda name: _on_a_terminal(url, name), COMMANDS), strict=True))


def _on_a_terminal(url: str, command: str) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    controller, terminal = pty.openpty()
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-m", "worker.cli", *COMMANDS[command]],
        env={**environment, "DNF_REDIS_URL": url},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    ) as running:
        os.close(terminal)
        written = b""
        while chunk := _read(controller):
            written += chunk
        assert running.wait(60) == 0, written
    os.close(controller)
    return written.decode().replace("\r", "").splitlines()


def _read(controller: int) -> bytes:
    try:
        return os.read(controller, 1 << 16)
    except OSError:  # the terminal was closed
        return b""


def _in_a_pipe(url: str, command: str) -> list[list[str]]:
    """Return the fields of the lines that a command writes to a pipe."""
    finished = CliRunner(env={"DNF_REDIS_URL": url}).invoke(main, COMMANDS[command])
    assert (finished.exit_code, finished.stderr) == (0, "")
    return [line.split("\t") for line in finished.stdout.splitlines()]


@pytest.mark.parametrize("command", COMMANDS)
def test_ids_are_whole_on_a_terminal_of_80_columns(
    url: str, on_a_terminal: dict[str, list[str]], command: str
) -> None:
    """Each on one line, to be copied; a line is longer only where one word is."""
    lines = on_a_terminal[command]
    entry_ids = [fields[0] for fields in _in_a_pipe(url, command)] if command == "dead letters" else []
    for identifier in [*CHECK_IDS, *entry_ids]:
        assert sum(identifier in line.split() for line in lines) == 1
    assert all(len(line) <= 80 or len(line.split()) == 1 for line in lines), lines


def test_a_list_in_a_pipe_has_one_line_for_each_record(url: str) -> None:
    """Its fields are separated by tabs, as `cut` and `awk` expect; an absent one is `-`."""
    assert [fields[2:] for fields in _in_a_pipe(url, "dead letters")] == [
        ["storage_unavailable", "21", check_id, DETAIL] for check_id in CHECK_IDS
    ]
    assert [fields[1:] for fields in _in_a_pipe(url, "verdicts")] == [
        ["rejected", "-", check_id, "bucket_not_allowed", "s3://bucket/key"] for check_id in CHECK_IDS
    ]


def test_an_empty_list_is_empty_in_a_pipe(new_database: Callable[[], str]) -> None:
    """The sentence for people is on standard error."""
    finished = CliRunner(env={"DNF_REDIS_URL": new_database()}).invoke(main, COMMANDS["dead letters"])
    assert (finished.stdout, finished.stderr) == ("", "No dead letters.\n")
