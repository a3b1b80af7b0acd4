"""The watchdog, in processes of their own, since it ends them."""

import json
import signal
import subprocess
import sys
from dataclasses import dataclass

import pytest

from tests.conftest import PATIENCE

LIMIT_SECONDS = 0.5 * PATIENCE

# A model thread that behaves in one of three ways after its first batch.
PROGRAM = """
import ctypes, sys, threading, time
from worker.checks.batching import MicroBatcher
from worker.telemetry.logs import configure_logs
from worker.settings import Settings
from worker.process.watchdog import Watchdog

configure_logs(Settings(log_format="json"))

def run(items):
    if items[0] == "wait":
        threading.Event().wait()
    if items[0] == "hold the GIL":
        ctypes.PyDLL(None).sleep(600)
    if items[0] == "be slow":
        time.sleep({limit} / 2)
    return items

batcher = MicroBatcher(run, max_batch=1, wait_seconds=0)
watchdog = Watchdog(batcher, {limit})
batcher.submit("be quick").result()
for _ in range(4):
    batcher.submit(sys.argv[1]).result()
time.sleep(2 * {limit})
watchdog.stop()
time.sleep(2.2 * {limit})
"""

# A process that is suspended for three times the limit, idle or amid a batch that ends soon after it.
SUSPENDED = """
import os, signal, subprocess, sys, time
from worker.checks.batching import MicroBatcher
from worker.process.watchdog import Watchdog

def run(items):
    time.sleep({limit} / 2)
    return items

batcher = MicroBatcher(run, max_batch=1, wait_seconds=0)
watchdog = Watchdog(batcher, {limit})
time.sleep({limit} / 4)
future = batcher.submit("a") if sys.argv[1] == "busy" else None
subprocess.Popen(["/bin/sh", "-c", "sleep $1; kill -CONT $2", "sh", str(3 * {limit}), str(os.getpid())])
os.kill(os.getpid(), signal.SIGSTOP)
if future:
    future.result()
time.sleep({limit})
watchdog.stop()
"""


#: What each process runs, and how its model behaves.
BEHAVIOURS = {
    "wait": PROGRAM,
    "hold the GIL": PROGRAM,
    "be slow": PROGRAM,
    "idle": SUSPENDED,
    "busy": SUSPENDED,
}


@dataclass(frozen=True)
class Ended:
    """A process that has ended."""

    status: int
    errors: str


@pytest.fixture(scope="module")
def ended() -> dict[str, Ended]:
    """Return the process of each behaviour: all run at once, because they sleep most of the time."""
    running = {
        name: subprocess.Popen(
            [sys.executable, "-c", program.format(limit=LIMIT_SECONDS), name],
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, program in BEHAVIOURS.items()
    }
    try:
        errors = {name: process.communicate(timeout=60 * PATIENCE)[1] for name, process in running.items()}
    finally:
        for process in running.values():
            process.kill()
    return {name: Ended(process.returncode, errors[name]) for name, process in running.items()}


def test_a_model_that_hangs_ends_its_process_with_one_log_line(ended: dict[str, Ended]) -> None:
    """The line has the limit; the exit status is 70."""
    assert ended["wait"].status == 70
    (line,) = (json.loads(text) for text in ended["wait"].errors.splitlines())
    assert (line["event"], line["level"]) == ("model_stalled", "critical")
    assert line["limit_seconds"] == LIMIT_SECONDS


def test_native_code_that_holds_the_gil_ends_its_process(ended: dict[str, Ended]) -> None:
    """No line can be logged; the fault handler writes the stack of the model thread."""
    assert ended["hold the GIL"].status == -signal.SIGABRT
    assert "Aborted" in ended["hold the GIL"].errors
    assert "in run" in ended["hold the GIL"].errors


def test_a_slow_or_idle_model_does_not_end_its_process(ended: dict[str, Ended]) -> None:
    """Four batches of half the limit, then twice the limit idle, then as long after `stop`."""
    assert ended["be slow"] == Ended(0, "")


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_a_suspended_process_is_not_ended(ended: dict[str, Ended], state: str) -> None:
    """Nor is one that is suspended amid a batch: time that does not pass for the model does not count."""
    assert ended[state] == Ended(0, "")
