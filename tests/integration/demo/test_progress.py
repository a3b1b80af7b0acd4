"""How long the demonstration waits for a slow worker."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from worker.demo.demonstration import DemoFailedError, Progressing
from worker.embedded.guarded_process import GuardedProcess


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], GuardedProcess]]:
    """Provide a function that starts a shell program, with a log."""
    started: list[GuardedProcess] = []

    def start(program: str) -> GuardedProcess:
        started.append(GuardedProcess(["/bin/sh", "-c", program], log=tmp_path / "worker.log"))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def test_a_worker_that_makes_progress_has_all_the_time_it_needs(
    start: Callable[[str], GuardedProcess],
) -> None:
    """Each line of its log starts the limit anew: here five lines, each within half of it."""
    process = start("for line in 1 2 3 4 5; do sleep 0.5; echo $line; done")
    progress = Progressing(process, quiet_seconds=1.5)
    while process.alive:
        progress.check("five lines take 2.5 seconds")
        time.sleep(0.02)
    assert process.log.read_text().split() == ["1", "2", "3", "4", "5"]


def test_a_worker_that_makes_none_is_given_up_with_a_remedy(start: Callable[[str], GuardedProcess]) -> None:
    """The message has the state, what to do, and the end of the log."""
    process = start("echo first; exec sleep 60")
    progress = Progressing(process, quiet_seconds=0.3)

    def wait() -> None:
        for _ in range(1000):
            progress.check("the model was not loaded yet")
            time.sleep(0.02)

    with pytest.raises(DemoFailedError, match=r"(?s)the model was not loaded yet.*DNF_BATCH_SIZE=1.*first"):
        wait()
