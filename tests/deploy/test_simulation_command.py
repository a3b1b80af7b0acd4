"""python -m deploy.simulation."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from deploy.simulation.__main__ import main

LOAD = ("--checks-per-day", "2000", "--pictures-per-second", "4")


def _simulation(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def test_the_command_simulates_a_day_and_draws_it(tmp_path: Path) -> None:
    """A small day, check by check: every check, its wait, the rule from the plan, and a picture."""
    picture = tmp_path / "day.png"
    done = _simulation(*LOAD, "--exact", "--plot", str(picture), "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    day = document["day"]
    assert day["checks"] == pytest.approx(2000, rel=0.1)
    assert day["wait_seconds"]["p50"] <= day["wait_seconds"]["p99"] <= day["wait_seconds"]["max"]
    assert day["cost_per_million"] is None
    assert (document["autoscaling"]["max_replicas"], document["sweep"]) == (1, [])
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_command_prints_tables_with_the_cost() -> None:
    """With a price, the table of the day has a cost."""
    done = _simulation(*LOAD, "--price-per-worker-hour", "1")
    assert done.exit_code == 0, done.output
    assert "Worker-hours" in done.stdout
    assert "Cost per million" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*LOAD, "--min-replicas", "9", "--max-replicas", "2"], "min <= max"),
        (["--checks-per-day", "1e9", "--pictures-per-second", "4", "--exact"], "--exact takes at most"),
        ([*LOAD, "--burst-factor", "0"], "--burst-factor"),
        ([*LOAD, "--plot", "{folder}/day.gif"], "--plot"),
    ],
)
def test_an_invalid_option_is_named_in_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    """Exit status 2, no traceback, and nothing is drawn."""
    done = _simulation(*(argument.format(folder=tmp_path) for argument in arguments))
    assert done.exit_code == 2
    assert message in done.output
    assert "Traceback" not in done.output
    assert not list(tmp_path.iterdir())
