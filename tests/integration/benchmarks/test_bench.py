"""python -m tests.benchmarks on real services and real workers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.queue import Rounds


def test_the_ratio_of_each_round_is_of_that_round() -> None:
    """A machine that is busy in one round slows both sides, so the ratio stays."""
    rounds = Rounds("queue", ours=(45.0, 9.0, 40.0), reference=(50.0, 10.0, 50.0))
    assert rounds.ratios == pytest.approx([0.9, 0.9, 0.8])
    assert rounds.spread() == pytest.approx((0.8, 0.9, 0.9))


def test_bench_measures_the_whole_path_against_bare_celery_and_the_bare_detector(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    """Every check of every round is processed, and both speeds of each row are recorded."""
    command = [sys.executable, "-m", "tests.benchmarks", "--rounds", "1", "--checks", "20"]
    command += ["--pictures", "4", "--batch-size", "2", "--bundle", str(tiny_bundle)]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "bench.json")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "bench.json").read_text())
    assert [len(row["ours"]) for row in rows] == [len(row["reference"]) for row in rows] == [1, 1]
    assert all(row["ours"][0] > 0 and row["reference"][0] > 0 for row in rows)
    assert "Celery" in done.stdout
