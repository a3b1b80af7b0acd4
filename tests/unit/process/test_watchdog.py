"""The watchdog, in processes of their own, since it ends them."""

import json
import signal
import subprocess
import sys

import pytest

from tests.conftest import PATIENCE

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


def _run(behaviour: str, program: str = PROGRAM) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program.format(limit=0.5 * PATIENCE), behaviour],
        capture_output=True, text=True, timeout=60 * PATIENCE, check=False,
    )  # fmt: skip


def test_a_model_that_hangs_ends_its_process_with_one_log_line() -> None:
    """The line has the limit; the exit status is 70."""
    ended = _run("wait")
    assert ended.returncode == 70
    (line,) = (json.loads(text) for text in ended.stderr.splitlines())
    assert (line["event"], line["level"]) == ("model_stalled", "critical")
    assert line["limit_seconds"] == 0.5 * PATIENCE


def test_native_code_that_holds_the_gil_ends_its_process() -> None:
    """No line can be logged; the fault handler writes the stack of the model thread."""
    ended = _run("hold the GIL")
    assert ended.returncode == -signal.SIGABRT
    assert "Aborted" in ended.stderr
    assert "in run" in ended.stderr


def test_a_slow_or_idle_model_does_not_end_its_process() -> None:
    """Four batches of half the limit, then twice the limit idle, then as long after `stop`."""
    ended = _run("be slow")
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_a_suspended_process_is_not_ended(state: str) -> None:
    """Nor is one that is suspended amid a batch: time that does not pass for the model does not count."""
    ended = _run(state, SUSPENDED)
    assert (ended.returncode, ended.stderr) == (0, "")
