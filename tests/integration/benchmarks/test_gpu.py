"""python -m tests.benchmarks.gpu, as far as it can be tested without a GPU."""

import json
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from tests.benchmarks.gpu import Outcome, Step, main, run_steps, steps


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_plan_is_printed_and_nothing_runs(tmp_path: Path) -> None:
    """Every step with its limit, its purpose and its command."""
    folder = tmp_path / "figures"
    result = CliRunner().invoke(main, [str(folder)])
    assert result.exit_code == 0, result.output
    assert "no GPU" in result.output
    for step in steps(folder):
        assert f"{step.name}, at most {step.seconds:.0f} s: {step.measures}" in result.output
        assert f"--json {folder / step.name}.json" in result.output
    assert not folder.exists()


def test_the_steps_fit_into_eight_minutes(tmp_path: Path) -> None:
    """Their limits together are at most 480 seconds."""
    assert sum(step.seconds for step in steps(tmp_path)) <= 480


def test_a_step_that_fails_or_hangs_costs_no_other_step(tmp_path: Path) -> None:
    """Each has its outcome in gpu-bench.json: status, figures and the end of what it printed."""
    writes = "import sys; open(sys.argv[-1], 'w').write('[7]'); print('written')"
    planned = [
        Step("hanging", "", ("-c", "import time; time.sleep(600)"), 0.5),
        Step("failing", "", ("-c", "import sys; sys.exit('no kernel image')"), 60),
        Step("working", "", ("-c", writes), 60),
    ]
    outcomes = run_steps(planned, tmp_path)
    assert [outcome.status for outcome in outcomes] == [None, 1, 0]
    assert "no kernel image" in outcomes[1].tail
    assert (outcomes[2].figures, outcomes[2].tail) == ([7], "written\n")
    assert outcomes[2].command.startswith(sys.executable)
    record = json.loads((tmp_path / "gpu-bench.json").read_text())
    assert [Outcome(**row) for row in record] == outcomes


def test_no_step_begins_when_the_time_is_up(tmp_path: Path) -> None:
    """It is recorded as not run."""
    (outcome,) = run_steps([Step("late", "", ("-c", ""), 60)], tmp_path, total_seconds=0)
    assert (outcome.status, outcome.seconds) == (None, 0.0)


def test_measuring_the_steps_of_the_rehearsal_needs_no_gpu(tmp_path: Path) -> None:
    """Each rehearses a step of the real run, on the CPU."""
    real, rehearsed = steps(tmp_path), steps(tmp_path, rehearse=True)
    assert [step.name for step in real] == [step.name for step in rehearsed]
    assert not any("cuda" in step.arguments or "--compile" in step.arguments for step in rehearsed)
