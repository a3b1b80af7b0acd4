"""The logs, as a process writes them."""

import json
import os
import subprocess
import sys
from typing import Any

PROGRAM = """
import logging, sys, warnings
from worker.logs import configure_logs, get_logger
from worker.settings import Settings
configure_logs(Settings())
log = get_logger("program")
log.info("thing_done", check_id="c-1", durations_ms={"fetch": 1.5})
logging.getLogger("celery.worker").warning("lost %s", "redis://:hidden-one@10.0.0.1:6379/0")
log.warning("elsewhere", url="amqp://guest:hidden-other@host//")
warnings.warn("old ways")
local = "a local variable"
try:
    raise ValueError("signed with hidden-three\\"x")
except ValueError:
    log.exception("thing_failed", key="hidden-two")
log.debug("not_shown")
"""


def _run(log_format: str) -> str:
    secrets = {
        "DNF_REDIS_URL": "redis://:hidden-one@127.0.0.1:1/0",
        "DNF_S3_ACCESS_KEY_ID": "hidden-two",
        "DNF_S3_SECRET_ACCESS_KEY": 'hidden-three"x',
    }
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **secrets, "DNF_LOG_FORMAT": log_format, "DNF_LOG_LEVEL": "INFO"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert finished.stdout == ""
    return finished.stderr


def _lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in _run("json").splitlines()]


def test_every_line_is_one_json_object_whoever_wrote_it() -> None:
    """Our events, the libraries' lines, warnings and tracebacks go through one pipe, with time and level."""
    lines = _lines()
    assert len(lines) == 5
    assert all({"event", "level", "timestamp", "logger"} <= line.keys() for line in lines)
    assert lines[0]["event"] == "thing_done"
    assert lines[0]["durations_ms"] == {"fetch": 1.5}
    assert lines[-1]["exception"][0]["exc_type"] == "ValueError"


def test_no_secret_reaches_a_log_in_either_format() -> None:
    """Keys and passwords are masked in values, texts and tracebacks, and local variables are left out."""
    for log_format in ("json", "console"):
        text = _run(log_format)
        assert "hidden" not in text
        assert "a local variable" not in text
    assert "redis://:********@10.0.0.1:6379/0" in _lines()[1]["event"]
