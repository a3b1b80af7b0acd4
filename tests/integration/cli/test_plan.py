"""dnf-worker plan: the arithmetic and the command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.conftest import PATIENCE
from worker.cli import main
from worker.operations.capacity import (
    EVENT_BYTES,
    REMEMBERED_BYTES,
    UNACKED_BYTES,
    WAITING_BYTES,
    Demand,
    plan,
    recommended_target,
)
from worker.operations.worker_model import WorkerModel
from worker.settings import Settings

MILLION = ("--checks-a-day", "864000", "--pictures-a-second", "4")


def _plan(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["plan", *arguments])


def test_a_plan_counts_workers_memory_reads_and_money() -> None:
    """Ten checks a second, twenty at the peak, four a worker; all by hand."""
    demand = Demand(checks_a_day=864_000, peak_factor=2, headroom=0.25, worker_hour_price=2.0)
    settings = Settings.model_construct(threads=32, publish_once_ttl_seconds=86_400)
    made = plan(demand, WorkerModel(4.0, start_seconds=90), settings)
    assert (made.mean_rate, made.peak_rate) == (10, 20)
    assert (made.workers_at_mean, made.workers_at_peak, made.workers_with_headroom) == (3, 5, 7)
    # Three workers do 12 of 20 a second, for 90 seconds of start and 30 of reaction; seven have 8 to spare.
    assert made.checks_waiting_while_workers_start == 8 * 120
    assert made.seconds_to_work_them_off == 120
    assert made.redis.waiting == 960 * WAITING_BYTES
    assert made.redis.unacknowledged == 7 * 32 * UNACKED_BYTES
    assert made.redis.remembered == 864_000 * REMEMBERED_BYTES
    assert made.redis.verdict_stream == 5000 * EVENT_BYTES
    assert made.stream_holds_seconds_at_peak == 250
    assert made.s3_bytes_a_day == 864e9
    assert made.cost_a_million_when_never_idle == pytest.approx(1e6 / 4 / 3600 * 2)
    assert made.cost_a_million_with_a_fixed_fleet == pytest.approx(7 * 24 * 2 / 0.864)
    assert made.brokers == 1


def test_a_plan_warns_of_what_does_not_fit() -> None:
    """A billion a day: several brokers, a stream too short, a memory of checks too long."""
    made = plan(Demand(checks_a_day=1e9), WorkerModel(100.0), Settings())
    assert made.brokers == 47
    assert any("47 of them" in warning for warning in made.warnings)
    assert any("DNF_VERDICT_STREAM_MAX_LENGTH" in warning for warning in made.warnings)
    assert any("DNF_PUBLISH_ONCE_TTL_SECONDS" in warning for warning in made.warnings)
    assert plan(Demand(checks_a_day=1e5), WorkerModel(3.0), Settings()).warnings == []


def test_the_target_for_a_worker_with_full_batches_is_about_a_batch() -> None:
    """A worker that needs as long for one as for half a batch holds many; another one or two."""
    assert recommended_target(WorkerModel(3.0)) == 2
    assert recommended_target(WorkerModel(100.0, fixed_share=0.5)) == 19


def test_the_command_prints_one_object_with_the_same_figures() -> None:
    """Without a price there is no cost, neither in the object nor in the table."""
    done = _plan(*MILLION, "--json")
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    assert made["plan"]["workers_with_headroom"] == 7
    assert made["autoscaling"]["max_replicas"] == 7
    assert made["plan"]["cost_a_million_when_never_idle"] is None
    table = _plan(*MILLION)
    assert "3, 5, 7" in table.stdout
    assert "A million checks" not in table.stdout
    assert "A million checks" in _plan(*MILLION, "--worker-hour-price", "1").stdout


def test_the_command_simulates_a_day_and_draws_it(tmp_path: Path) -> None:
    """A small day, check by check: all of them, their waits, and a picture."""
    picture = tmp_path / "day.png"
    done = _plan(
        "--checks-a-day", "2000", "--pictures-a-second", "4", "--exact", "--plot", str(picture), "--json"
    )
    assert done.exit_code == 0, done.output
    day = json.loads(done.stdout)["day"]
    assert day["checks"] == pytest.approx(2000, rel=0.1)
    assert day["wait_seconds"]["p50"] <= day["wait_seconds"]["p99"] <= day["wait_seconds"]["longest"]
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--checks-a-day", "0", "--pictures-a-second", "4"], "--checks-a-day"),
        (["--checks-a-day", "1e6", "--pictures-a-second", "0"], "--pictures-a-second"),
        ([*MILLION, "--fixed-share", "2"], "--fixed-share"),
        ([*MILLION, "--min-replicas", "9", "--max-replicas", "2"], "min <= max"),
        (["--checks-a-day", "1e9", "--pictures-a-second", "4", "--exact"], "--exact takes at most"),
        ([*MILLION, "--plot", "{folder}/day.gif"], "--plot"),
    ],
)
def test_a_wrong_option_is_named_in_one_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    """Exit status 2, no traceback, and nothing is drawn."""
    done = _plan(*(argument.format(folder=tmp_path) for argument in arguments))
    assert done.exit_code == 2
    assert said in done.output
    assert "Traceback" not in done.output
    assert not list(tmp_path.iterdir())


def test_without_the_extra_the_plan_works_and_a_simulation_says_what_is_missing() -> None:
    """The command line does not load SimPy or matplotlib until they are needed."""
    program = (
        "import sys; sys.modules['simpy'] = None; sys.modules['matplotlib'] = None\n"
        "from worker.cli import main\n"
        "main(['plan', '--checks-a-day', '1e6', '--pictures-a-second', '4', *sys.argv[1:]])"
    )

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program, *arguments],
            capture_output=True,
            text=True,
            timeout=60 * PATIENCE,
            check=False,
        )

    assert run().returncode == 0
    failed = run("--simulate")
    assert failed.returncode == 1
    assert "dnf-moderation[planning]" in failed.stderr
    assert "Traceback" not in failed.stderr
