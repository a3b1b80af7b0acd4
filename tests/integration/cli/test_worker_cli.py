"""dnf-worker on a running worker."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.conftest import NULL_WORKER, StartWorker
from worker.cli import main
from worker.embedded.startup import free_ports

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module", autouse=True)
def _worker(worker_process: Callable[..., Any]) -> None:
    """Keep a worker running for this module."""
    worker_process(module=NULL_WORKER)


@pytest.fixture(scope="module")
def cli(service_environment: dict[str, str]) -> Cli:
    """Provide a function that runs dnf-worker with arguments and additional environment variables."""

    def run(*arguments: object, **variables: str) -> "subprocess.CompletedProcess[str]":
        finished = subprocess.run(
            [sys.executable, "-m", "worker.cli", *map(str, arguments)],
            env={**os.environ, **service_environment, "COLUMNS": "200", **variables},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "Traceback" not in finished.stderr, finished.stderr
        return finished

    return run


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, make_picture: Callable[..., bytes]) -> list[Path]:
    """Provide two pictures and a text file."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(2):
        (folder / f"{number}[b].jpg").write_bytes(make_picture(number + 50))
    (folder / "notes.jpg").write_text("no picture")
    return [folder / "0[b].jpg", folder / "1[b].jpg", folder / "notes.jpg"]


def test_submit_and_wait_shows_the_verdicts(cli: Cli, pictures: list[Path]) -> None:
    """Two pictures are judged in one call and listed by name; the exit status is 0."""
    finished = cli("submit", "--wait", *pictures[:2])
    assert finished.returncode == 0, finished.stderr
    for picture in pictures[:2]:
        assert picture.name in finished.stdout
    outcomes = [line.split("\t")[0] for line in finished.stdout.splitlines()]
    assert len(outcomes) == 2
    assert set(outcomes) <= {"real", "review", "generated"}


def test_submit_and_wait_reports_a_rejection(cli: Cli, pictures: list[Path]) -> None:
    """The reason is shown, the others are judged, and the exit status is 1."""
    finished = cli("submit", "--wait", *pictures)
    assert finished.returncode == 1
    rejected = finished.stdout.splitlines()[2].split("\t")
    assert rejected[0] == "rejected"
    assert rejected[4:] == [str(pictures[2]), "not_an_image"]


def test_submit_prints_the_check_ids_of_the_verdicts(cli: Cli, pictures: list[Path]) -> None:
    """The metadata is returned in the event, which is one JSON object per line."""
    submitted = cli("submit", "--metadata", '{"user": 5}', "--queue", "image-checks.bulk", *pictures[:2])
    assert submitted.returncode == 0, submitted.stderr
    check_ids = submitted.stdout.split()
    assert len(check_ids) == 2
    waited = cli("submit", "--wait", "--json", pictures[0])
    assert json.loads(waited.stdout)["type"] == "image.verdict.v1"
    shown = cli("verdicts", "--json")
    assert shown.returncode == 0, shown.stderr
    events = {event["data"]["check_id"]: event for event in map(json.loads, shown.stdout.splitlines())}
    for check_id in check_ids:
        assert events[check_id]["data"]["metadata"] == {"user": 5}


def test_an_object_in_the_store_is_submitted_by_its_uri(cli: Cli) -> None:
    """A missing object is rejected by the worker, not by the command."""
    finished = cli("submit", "--wait", "s3://test-uploads/nothing/here.jpg")
    assert finished.returncode == 1
    assert finished.stdout.rstrip("\n").endswith("\ts3://test-uploads/nothing/here.jpg\tmissing")


def test_a_group_sees_each_event_once(cli: Cli, pictures: list[Path]) -> None:
    """A second call of the same group shows nothing; another group shows every event."""
    cli("submit", "--wait", pictures[0])
    assert cli("verdicts", "--group", "one").stdout.strip()
    assert not cli("verdicts", "--group", "one").stdout.strip()
    assert cli("verdicts", "--group", "two").stdout.strip()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/no/such/picture.jpg"], "no such file"),
        (["s3://bucket-only"], "expected s3://BUCKET/KEY"),
        (["--metadata", "{", "s3://bucket/key"], "--metadata is not JSON"),
        (["--metadata", "[]", "s3://bucket/key"], "--metadata must be a JSON object"),
        (
            ["--metadata", json.dumps({"a": "x" * 4096}), "s3://bucket/key"],
            "metadata: Value error, at most 4096",
        ),
        (["--queue", "other", "s3://bucket/key"], "Invalid value for '--queue'"),
        ([], "Missing argument"),
    ],
)
def test_wrong_usage_has_one_line_and_status_2(arguments: list[str], message: str) -> None:
    """Nothing is enqueued, and the line names the mistake."""
    finished = CliRunner().invoke(main, ["submit", *arguments])
    assert isinstance(finished.exception, SystemExit)
    assert finished.exit_code == 2
    assert message in finished.stderr


def test_an_invalid_setting_is_named(cli: Cli) -> None:
    """Every command names the variable and its problem, with status 2."""
    for command in ("run", "verdicts", "config"):
        finished = cli(command, DNF_BATCH_SIZE="many")
        assert finished.returncode == 2
        assert "DNF_BATCH_SIZE" in finished.stderr
        assert len(finished.stderr.strip().splitlines()) == 1


def test_unreachable_services_are_named_in_one_line(cli: Cli, pictures: list[Path]) -> None:
    """Redis, the object store and a missing bundle: one line each, no traceback, no secret."""
    port = free_ports(1)[0]
    submit = ["submit", pictures[0]]
    commands: list[tuple[list[Any], dict[str, str], str]] = [
        (submit, {"DNF_REDIS_URL": f"redis://127.0.0.1:{port}/0"}, "Redis cannot be reached"),
        (["verdicts"], {"DNF_REDIS_URL": f"redis://:hidden@127.0.0.1:{port}/0"}, "Redis cannot be reached"),
        (
            submit,
            {"DNF_S3_ENDPOINT_URL": f"http://user:hidden@127.0.0.1:{port}"},
            f"http://user:********@127.0.0.1:{port}/test-uploads/",
        ),
        (["run"], {"DNF_BUNDLE": "no-such-bundle", "DNF_LOG_FORMAT": "json"}, "no bundle at no-such-bundle"),
    ]
    with ThreadPoolExecutor(len(commands)) as threads:
        running = [threads.submit(cli, *arguments, **variables) for arguments, variables, _ in commands]
    for finished, (_, _, name) in zip((each.result() for each in running), commands, strict=True):
        assert finished.returncode == 1, finished.stderr
        assert name in finished.stderr
        assert "hidden" not in finished.stderr
        # Beside the log.
        assert len([line for line in finished.stderr.splitlines() if not line.startswith("{")]) == 1


def test_without_a_worker_waiting_times_out(
    cli: Cli, pictures: list[Path], new_database: Callable[[], str]
) -> None:
    """The message asks whether a worker runs; the exit status is 1."""
    unserved = new_database()
    finished = cli("submit", "--wait", "--timeout", "1", pictures[0], DNF_REDIS_URL=unserved)
    assert finished.returncode == 1
    assert "Is a worker running?" in finished.stderr


def test_waiting_in_vain_names_the_store_when_it_is_down(
    cli: Cli, worker_process: StartWorker, new_database: Callable[[], str]
) -> None:
    """The worker noted it when it retried the check: nobody is asked whether a worker runs."""
    broken = {
        "DNF_REDIS_URL": new_database(),
        "DNF_S3_ENDPOINT_URL": f"http://127.0.0.1:{free_ports(1)[0]}",
    }
    worker = worker_process(broken, module=NULL_WORKER)
    finished = cli("submit", "--wait", "--timeout", "5", "s3://test-uploads/a.jpg", **broken)
    assert finished.returncode == 1
    assert "no verdict in time, retried for storage_unavailable: s3://test-uploads/a.jpg" in finished.stderr
    assert "Is a worker running?" not in finished.stderr
    assert len(finished.stderr.strip().splitlines()) == 1
    worker.kill()


def test_config_shows_every_setting_and_no_secret(cli: Cli, service_environment: dict[str, str]) -> None:
    """The table and the JSON have the same rows, with keys and the passwords in both addresses masked."""
    addresses = {
        "DNF_REDIS_URL": "redis://user:hidden-password@10.0.0.1:6379/0",
        "DNF_S3_ENDPOINT_URL": "https://user:hidden-password@store.example:8333",
    }
    table = cli("config", **addresses)
    shown = json.loads(cli("config", "--json", **addresses).stdout)
    assert table.returncode == 0
    assert shown["redis_url"] == "redis://user:********@10.0.0.1:6379/0"
    assert shown["s3_endpoint_url"] == "https://user:********@store.example:8333"
    for name in shown:
        assert f"DNF_{name.upper()}" in table.stdout
    for secret in ("hidden-password", service_environment["DNF_S3_SECRET_ACCESS_KEY"]):
        assert secret not in table.stdout
        assert secret not in json.dumps(shown)


def test_tables_have_no_colours_in_a_pipe(cli: Cli) -> None:
    """No escape sequence reaches a file or another program."""
    for command in (["config"], ["doctor"], ["--help"]):
        assert "\x1b" not in cli(*command).stdout
