"""The logs that a process writes."""

import json
import os
import pty
import subprocess
import sys
from contextlib import suppress
from functools import cache
from typing import Any

PROGRAM = """
import logging, sys, warnings
from structlog.contextvars import bind_contextvars
from worker.telemetry.logs import configure_logs, get_logger
from worker.settings import Settings
configure_logs(Settings())
log = get_logger("program")
log.info("thing_done", check_id="c-1", durations_ms={"fetch": 1.5})
logging.getLogger("celery.worker").warning("lost %s", "redis://:hidden-one@10.0.0.1:6379/0")
log.warning("elsewhere", url="amqp://guest:hidden-other@host//", password="hidden-four")
warnings.warn("deprecated")
bind_contextvars(check_id="c-9", worker="w-1", attempt=2)
logging.getLogger("botocore.retries").warning("retried")
local = "a local variable"
try:
    raise ValueError("signed with hidden-three\\"x")
except ValueError:
    log.exception("thing_failed", key="hidden-two")
log.debug("not_shown")
"""


@cache
def _run(log_format: str, level: str = "INFO") -> str:
    secrets = {
        "DNF_REDIS_URL": "redis://:hidden-one@127.0.0.1:1/0",
        "DNF_S3_ENDPOINT_URL": "https://worker:hidden-four@store.example",
        "DNF_S3_ACCESS_KEY_ID": "hidden-two",
        "DNF_S3_SECRET_ACCESS_KEY": 'hidden-three"x',
    }
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **secrets, "DNF_LOG_FORMAT": log_format, "DNF_LOG_LEVEL": level},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert finished.stdout == ""
    return finished.stderr


def _lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in _run("json").splitlines()]


def test_every_line_is_a_json_object() -> None:
    """Our events, lines of libraries, warnings and tracebacks alike, with time and level."""
    lines = _lines()
    assert len(lines) == 6
    assert all({"event", "level", "timestamp", "logger"} <= line.keys() for line in lines)
    assert lines[0]["event"] == "thing_done"
    assert lines[0]["durations_ms"] == {"fetch": 1.5}
    assert lines[-1]["exception"][0]["exc_type"] == "ValueError"
    assert lines[-1]["exception"][0]["frames"][0]["lineno"] > 0


def test_the_bound_context_is_in_every_line() -> None:
    """Check, worker and attempt are in our lines, in those of libraries and in tracebacks."""
    lines = _lines()
    assert [line["event"] for line in lines[-2:]] == ["retried", "thing_failed"]
    for line in lines[-2:]:
        assert (line["check_id"], line["worker"], line["attempt"]) == ("c-9", "w-1", 2)
    assert "attempt" not in lines[1]


def test_the_log_level_is_a_setting() -> None:
    """At ERROR neither our info lines nor a library's warnings are written."""
    lines = [json.loads(line) for line in _run("json", "ERROR").splitlines()]
    assert [line["event"] for line in lines] == ["thing_failed"]


def test_a_terminal_gets_lines_for_people_and_a_file_gets_json() -> None:
    """By default: a pseudo-terminal gets no JSON, a pipe gets nothing else."""
    environment = {name: value for name, value in os.environ.items() if name != "DNF_LOG_FORMAT"}
    command = [sys.executable, "-c", PROGRAM]
    leader, follower = pty.openpty()
    shown = b""
    with subprocess.Popen(command, env=environment, stderr=follower), os.fdopen(leader, "rb") as terminal:
        os.close(follower)
        with suppress(OSError):  # Linux raises it when the other end is closed
            while part := os.read(terminal.fileno(), 4096):
                shown += part
    assert b"thing_done" in shown
    assert b'{"' not in shown
    piped = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=True).stderr
    events = [json.loads(line)["event"] for line in piped.splitlines()]
    assert events[0] == "thing_done"


def test_no_secret_reaches_a_log_in_either_format() -> None:
    """Keys and passwords are masked in values, text and tracebacks; local variables are omitted."""
    for log_format in ("json", "console"):
        text = _run(log_format)
        assert "hidden" not in text
        assert "a local variable" not in text
    assert "redis://:********@10.0.0.1:6379/0" in _lines()[1]["event"]
