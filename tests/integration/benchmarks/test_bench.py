"""python -m tests.benchmarks on real services and real workers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.detector import Rounds
from tests.benchmarks.path import Cost


def test_the_ratio_of_each_round_is_of_that_round() -> None:
    """A machine that is busy in one round slows both sides, so the ratio stays."""
    rounds = Rounds("queue", ours=(45.0, 9.0, 40.0), reference=(50.0, 10.0, 50.0))
    assert rounds.ratios == pytest.approx([0.9, 0.9, 0.8])
    assert rounds.spread() == pytest.approx((0.8, 0.9, 0.9))
    ours = Cost("512", 1, "path", (45.0, 9.0, 40.0), (7.0, 8.0, 9.0), (0.1, 0.2, 0.3), 0)
    plain = Cost("512", 1, "plain", (50.0, 10.0, 50.0), (7.0, 8.0, 9.0), (0.1, 0.2, 0.3), 0)
    assert ours.rate_to(plain) == pytest.approx(0.9)


def _bench(file: Path, *arguments: str) -> tuple[list[dict[str, Any]], str]:
    command = [sys.executable, "-m", "tests.benchmarks", *arguments, "--rounds", "1", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(file.read_text())
    return rows, done.stdout


def test_bench_measures_the_whole_path_against_the_plainest_task_and_bare_celery(tmp_path: Path) -> None:
    """Each kind of worker finishes all of its messages, and its rate and processor time are recorded."""
    arguments = ["path", "--picture", "512", "--processes", "1", "--checks", "20"]
    rows, table = _bench(tmp_path / "bench.json", *arguments)
    assert [row["kind"] for row in rows] == ["path", "plain", "bare"]
    assert all(len(row["checks_per_second"]) == 1 and row["worker_ms"][0] > 0 for row in rows)
    assert "Celery" in table


def test_bench_measures_the_whole_path_against_the_bare_detector(tiny_bundle: Path, tmp_path: Path) -> None:
    """Every picture of every round is processed, and both speeds are recorded."""
    arguments = ["detector", "--pictures", "4", "--batch-size", "2", "--bundle", str(tiny_bundle)]
    (row,), _ = _bench(tmp_path / "bench.json", *arguments)
    assert row["ours"][0] > 0
    assert row["reference"][0] > 0


def test_bench_measures_submissions_over_http_beside_those_of_the_client(tmp_path: Path) -> None:
    """Every check of both has one event, or the benchmark fails."""
    rows, table = _bench(tmp_path / "bench.json", "api", "--checks", "48", "--clients", "16")
    assert sorted(row["way"] for row in rows) == ["Client.submit", "POST /v1/checks"]
    assert all(0 < row["p50_ms"] <= row["p99_ms"] for row in rows)
    assert "p99" in table
