"""dnf-worker plan: the arithmetic and the command."""

import json
from collections.abc import Callable

import pytest
import redis
from click.testing import CliRunner, Result

from worker.broker.keys import WORKER_RATES
from worker.cli import main
from worker.operations.capacity import (
    EVENT_BYTES,
    RECORD_BYTES,
    THUMBNAIL_BYTES,
    UNACKED_BYTES,
    WAITING_BYTES,
    Demand,
    WorkerModel,
    plan,
    recommended_target,
)
from worker.settings import Settings

LOAD = ("--checks-per-day", "864000", "--pictures-per-second", "4")


def _plan(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["plan", *arguments])


def test_a_plan_counts_workers_memory_reads_and_money() -> None:
    """Ten checks per second, twenty at the peak, four per worker; computed by hand."""
    demand = Demand(checks_per_day=864_000, peak_factor=2, headroom=0.25, price_per_worker_hour=2.0)
    settings = Settings.model_construct(
        threads=32, publish_once_ttl_seconds=86_400, thumbnail_ttl_seconds=43_200
    )
    result = plan(demand, WorkerModel(4.0, start_seconds=90), settings)
    assert (result.mean_rate, result.peak_rate) == (10, 20)
    assert (result.workers_at_mean, result.workers_at_peak, result.workers_with_headroom) == (3, 5, 7)
    # Three workers do 12 of 20 per second for 90 seconds of start and 30 of reaction; seven have 8 spare.
    assert result.checks_waiting_while_workers_start == 8 * 120
    assert result.backlog_drain_seconds == 120
    assert result.redis.waiting == 960 * WAITING_BYTES
    assert result.redis.unacknowledged == 7 * 32 * UNACKED_BYTES
    assert result.redis.records == 864_000 * RECORD_BYTES
    assert result.redis.verdict_stream == 100_000 * EVENT_BYTES
    # Half a day at the peak's rate.
    assert result.redis.thumbnails == 864_000 * THUMBNAIL_BYTES
    assert result.verdict_stream_full_after_seconds == 5000
    assert result.s3_writes_per_day == 0
    assert result.s3_bytes_per_day == 864e9
    assert result.cost_per_million_fully_busy == pytest.approx(1e6 / 4 / 3600 * 2)
    assert result.cost_per_million_fixed_fleet == pytest.approx(7 * 24 * 2 / 0.864)
    assert result.brokers == 1


def test_a_plan_warns_where_the_settings_do_not_fit_the_load() -> None:
    """A billion per day needs brokers, a longer stream, shorter records and a bucket for thumbnails."""
    result = plan(Demand(checks_per_day=1e9), WorkerModel(100.0), Settings())
    assert result.brokers == 47
    assert any("47 brokers" in warning for warning in result.warnings)
    assert any("DNF_VERDICT_STREAM_MAX_LENGTH" in warning for warning in result.warnings)
    assert any("DNF_PUBLISH_ONCE_TTL_SECONDS" in warning for warning in result.warnings)
    assert any("DNF_THUMBNAIL_BUCKET" in warning for warning in result.warnings)
    with_bucket = Settings(thumbnail_bucket="thumbnails")  # type: ignore[call-arg]
    small = plan(Demand(checks_per_day=1e5), WorkerModel(3.0), with_bucket)
    assert small.warnings == []
    assert (small.redis.thumbnails, small.s3_writes_per_day) == (0, 1e5)


def test_a_stream_that_ten_minutes_of_events_fill_is_named() -> None:
    """A group that stops for so long pauses the workers: at 7,200,000 checks a day that is the limit."""
    fits, full = (
        plan(Demand(checks_per_day=rate), WorkerModel(3.0), Settings(thumbnail_bucket="t"))  # type: ignore[call-arg]
        for rate in (7.1e6, 7.3e6)
    )
    assert not any("workers pause" in warning for warning in fits.warnings)
    (warning,) = [warning for warning in full.warnings if "workers pause" in warning]
    assert "DNF_VERDICT_STREAM_MAX_LENGTH=101,389" in warning


def test_the_recommended_target_is_one_batch_where_batches_have_a_fixed_cost() -> None:
    """A worker that takes half a batch's time for one picture has many checks in progress; another, two."""
    assert recommended_target(WorkerModel(3.0)) == 2
    assert recommended_target(WorkerModel(100.0, fixed_share=0.5)) == 19


def test_the_command_prints_the_plan_as_a_table_or_as_json() -> None:
    """Both have the same figures; without a price neither has a cost."""
    done = _plan(*LOAD, "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["workers_with_headroom"] == 7
    assert result["cost_per_million_fully_busy"] is None
    table = _plan(*LOAD)
    assert "3, 5, 7" in table.stdout
    assert "Cost per million" not in table.stdout
    assert "Cost per million" in _plan(*LOAD, "--price-per-worker-hour", "1").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--checks-per-day", "0", "--pictures-per-second", "4"],
            "--checks-per-day: Input should be greater",
        ),
        (["--checks-per-day", "1e6", "--pictures-per-second", "0"], "--pictures-per-second"),
        ([*LOAD, "--fixed-share", "2"], "--fixed-share"),
        ([*LOAD, "--start-seconds", "-1"], "--start-seconds"),
    ],
)
def test_an_invalid_option_is_named_in_one_line(arguments: list[str], message: str) -> None:
    """Exit status 2, no traceback."""
    done = _plan(*arguments)
    assert done.exit_code == 2
    assert message in done.output
    assert "Traceback" not in done.output


def test_a_fleet_is_sized_by_its_workers_own_rate(new_database: Callable[[], str]) -> None:
    """As they left it in Redis; before the first worker the option is asked for, in one line."""
    url = new_database()
    plan_words = ["plan", "--checks-per-day", "1e6"]
    environment = {"DNF_REDIS_URL": url}
    unknown = CliRunner(env=environment).invoke(main, plan_words)
    assert (unknown.exit_code, unknown.stdout) == (2, "")
    assert unknown.stderr.startswith("Error: no worker has measured its rate yet: give --pictures-per-second")
    with redis.Redis.from_url(url) as broker:
        broker.zadd(WORKER_RATES, {"one:1": 2.0, "two:1": 4.0})
    own = CliRunner(env=environment).invoke(main, [*plan_words, "--json"])
    given = CliRunner(env=environment).invoke(main, [*plan_words, "--pictures-per-second", "3", "--json"])
    assert own.exit_code == given.exit_code == 0
    assert own.stdout == given.stdout
    assert own.stderr == "The workers' own rate: 3.00 pictures per second each\n"
