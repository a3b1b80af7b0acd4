"""The watchdog, in processes of their own: it ends them."""

import json
import subprocess
import sys

from tests.conftest import PATIENCE

# A model thread that hangs in one of three ways after its first batch.
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
    if items[0] == "keep the interpreter":
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

# A model that stands still at every other look, as it does to a process that is stopped again and again.
STOPPED = """
import threading
from worker.process.watchdog import Watchdog

class Stopped:
    looks, over = iter([9 * {limit}, 0.0] * 4), threading.Event()

    @property
    def stalled_seconds(self):
        stalled = next(self.looks, None)
        if stalled is None:
            self.over.set()
        return stalled or 0.0

watchdog = Watchdog(Stopped(), {limit})
Stopped.over.wait()
watchdog.stop()
"""


def _run(behaviour: str, program: str = PROGRAM) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program.format(limit=0.5 * PATIENCE), behaviour],
        capture_output=True, text=True, timeout=60 * PATIENCE, check=False,
    )  # fmt: skip


def test_a_model_that_hangs_ends_its_process_with_one_line_that_says_why() -> None:
    """The line has the time and the limit; the exit status is 70."""
    ended = _run("wait")
    assert ended.returncode == 70
    (line,) = (json.loads(text) for text in ended.stderr.splitlines())
    assert (line["event"], line["level"]) == ("model_stalled", "critical")
    assert line["stalled_seconds"] >= line["limit_seconds"] == 0.5 * PATIENCE


def test_native_code_that_never_lets_python_run_ends_its_process_too() -> None:
    """Then no line can be written; the stack of the model's thread is."""
    ended = _run("keep the interpreter")
    assert ended.returncode == 1
    assert "Timeout" in ended.stderr
    assert "in run" in ended.stderr


def test_a_model_that_is_slow_or_idle_lives() -> None:
    """Four batches of half the limit, twice the limit without work, and as long again without a watchdog."""
    ended = _run("be slow")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_process_that_was_stopped_for_a_while_lives() -> None:
    """A stall that is over at the next look is none of the model's."""
    ended = _run("stop", STOPPED)
    assert (ended.returncode, ended.stderr) == (0, "")
