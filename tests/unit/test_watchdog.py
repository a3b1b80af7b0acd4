"""The watchdog, in processes of their own: it ends them."""

import json
import subprocess
import sys

from tests.conftest import PATIENCE

# A model thread that hangs in one of three ways after its first batch.
PROGRAM = """
import ctypes, sys, threading, time
from worker.batching import MicroBatcher
from worker.logs import configure_logs
from worker.settings import Settings
from worker.watchdog import Watchdog

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
"""


def _run(behaviour: str) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(limit=0.5 * PATIENCE)
    return subprocess.run(
        [sys.executable, "-c", program, behaviour],
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
    """Four batches of half the limit, and twice the limit without work."""
    ended = _run("be slow")
    assert (ended.returncode, ended.stderr) == (0, "")
