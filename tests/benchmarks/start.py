"""How long it takes to start: `python -m tests.benchmarks.start`.

Prints processor seconds (user and system, the least of five runs), which other load on the machine affects
less than time by the clock, and for a worker with the default bundle the step that each log line ends. Set
OMP_NUM_THREADS=1 on a busy machine, where threads that wait for each other burn its time.
"""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from detector.terminal import Console
from worker.embedded.services import EmbeddedServices

ROUNDS = 5
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PROGRAMS = {
    "import worker.client": ("import worker.client",),
    "dnf-worker --help": ("from worker.cli import main; main()", "--help"),
    "dnf-worker --version": ("from worker.cli import main; main()", "--version"),
    "dnf-detector --help": ("from detector.cli import main; main()", "--help"),
}


def processor_seconds(*program: str) -> float:
    """Return the processor time of one run of a Python program with its arguments."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", *program], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def start_worker() -> None:
    """Start a worker; print its processor time and the time by the clock at each line of its log."""
    with EmbeddedServices() as services:
        environment = {**os.environ, **services.environment(), "DNF_LOG_FORMAT": "json"}
        command = [sys.executable, "-m", "worker.cli", "run", "--unsupervised"]
        began = time.monotonic()
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
            try:
                for line in process.stderr or ():
                    event = json.loads(line)["event"] if line.startswith("{") else ""
                    user, system = (
                        Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
                    )
                    spent = (int(user) + int(system)) / _TICKS_PER_SECOND
                    if event.isidentifier():
                        Console().print(
                            f"{event:<24}{spent:7.2f}{time.monotonic() - began:9.2f} by the clock"
                        )
                    if event == "worker_ready":
                        return
            finally:
                process.terminate()


if __name__ == "__main__":
    for name, program in PROGRAMS.items():
        Console().print(f"{name:<24}{min(processor_seconds(*program) for _ in range(ROUNDS)):7.2f}")
    start_worker()
