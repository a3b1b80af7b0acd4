"""DNF_BUNDLE_DIGEST: workers judge with the pinned bundle or not at all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from detector.bundle.files import resolve
from tests.conftest import PATIENCE, MakePicture, StartWorker
from worker.client import Client
from worker.embedded.services import EmbeddedServices
from worker.settings import Settings


def test_every_verdict_names_the_pinned_digest(  # noqa: PLR0917 - fixtures
    worker_process: StartWorker,
    service_environment: dict[str, str],
    services: EmbeddedServices,
    tiny_bundle: Path,
    make_picture: MakePicture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The worker starts with the right pin, and its model's digest is that one."""
    pinned = resolve(tiny_bundle).digest
    worker_process({"DNF_BUNDLE_DIGEST": pinned})
    services.seaweedfs.client().put_object(Bucket=services.bucket, Key="pinned.jpg", Body=make_picture())
    for name, value in service_environment.items():
        monkeypatch.setenv(name, value)
    with Client(Settings()) as client:
        check_id = client.submit(services.bucket, "pinned.jpg")
        event = client.wait_for(check_id, timeout_seconds=60 * PATIENCE)[check_id]
    assert json.loads(event.raw)["data"]["model"]["digest"] == pinned


def test_with_another_digest_no_worker_starts_and_the_doctor_says_why(
    service_environment: dict[str, str],
) -> None:
    """`run` ends with one line and status 1; the doctor reports a fault with the digest that was found."""
    environment = {**os.environ, **service_environment, "DNF_BUNDLE_DIGEST": "0" * 64}

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "worker.cli", *words],
            capture_output=True,
            text=True,
            env=environment,
            timeout=120 * PATIENCE,
            check=False,
        )

    ended = command("run", "--unsupervised")
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert "not the pinned" in ended.stderr.splitlines()[-1]
    report = json.loads(command("doctor", "--json").stdout)
    (bundle,) = [entry for entry in report["diagnoses"] if entry["name"] == "bundle"]
    assert bundle["outcome"] == "fault"
    assert "digest_mismatch" in bundle["observed"]
