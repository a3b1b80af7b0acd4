"""Keys, field names and queue entries of others reach the operator's terminal with their escapes shown."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from tests.conftest import NULL_WORKER, PATIENCE, MakePicture, RunningWorker, StartWorker

HOSTILE = "\x1b]0;owned\x07\x9b2J\u202egpj"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")

Command = Callable[..., str]


@pytest.fixture(scope="module")
def worker(worker_process: StartWorker, tiny_bundle: Path) -> RunningWorker:
    """Start a worker."""
    return worker_process({"DNF_BUNDLE": str(tiny_bundle)}, module=NULL_WORKER)


@pytest.fixture
def output(worker: RunningWorker) -> Command:
    """Provide a function that returns what a command of this project prints."""

    def run(*words: str, program: str = "worker") -> str:
        finished = subprocess.run(
            [sys.executable, "-c", f"from {program}.cli import main; main()", *words],
            capture_output=True,
            env={**os.environ, **worker.environment, "COLUMNS": "200"},
            timeout=120 * PATIENCE,
            check=False,
        )
        assert b"Traceback" not in finished.stderr
        return (finished.stdout + finished.stderr).decode()

    return run


def test_nothing_that_others_wrote_controls_the_terminal(
    worker: RunningWorker, output: Command, make_picture: MakePicture, tmp_path: Path
) -> None:
    """A key, a field name, a queue's name, a raw entry, a file's name; in tables, lines, errors and JSON."""
    with redis.Redis.from_url(worker.redis_url) as broker:
        entry = {
            "body": json.dumps([[{"bucket": "test-uploads", "key": "k", f"field{HOSTILE}": 1}], {}, {}]),
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": {"task": "check_image", "id": "x"},
            "properties": {"delivery_tag": "x"},
        }
        broker.lpush("image-checks", json.dumps(entry, ensure_ascii=False))
        broker.lpush("image-checks", f"entry {HOSTILE}".encode())
        broker.sadd(f"_kombu.binding.queue{HOSTILE}", "x")
    worker.wait_for_event("check_dead_lettered", count=2)
    picture = tmp_path / f"name{HOSTILE}.jpg"
    picture.write_bytes(make_picture())
    uri = f"s3://test-uploads/key{HOSTILE}"
    printed = {
        "submit": output("submit", "--wait", uri, str(picture)),
        "submit error": output("submit", f"/no/such/{HOSTILE}"),
        "verdicts": output("verdicts"),
        "verdicts JSON": output("verdicts", "--json"),
        "dead letters": output("dead-letters", "list"),
        "dead letters JSON": output("dead-letters", "list", "--json"),
        "doctor": output("doctor"),
        "check": output(
            "check", "--bundle", worker.environment["DNF_BUNDLE"], str(picture), program="detector"
        ),
    }
    for letter in printed["dead letters JSON"].splitlines():
        printed[letter] = output("dead-letters", "show", json.loads(letter)["id"])
    assert len(printed) == 10
    for name, text in printed.items():
        assert not CONTROL.search(text), name
        # A table may break a line anywhere.
        assert "owned" in re.sub(r"\W", "", text), (name, text)
