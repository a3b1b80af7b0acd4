"""The metrics of a real worker."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import redis

from tests.chaos.conftest import StartFleet
from tests.chaos.proxy import FaultProxy
from tests.scraping import Served
from worker.client import Client
from worker.contract.envelope import encode
from worker.embedded.services import EmbeddedServices
from worker.embedded.startup import free_ports
from worker.embedded.valkey import Valkey


def test_a_worker_counts_its_checks(  # noqa: PLR0917 - the fixtures that it needs
    fleet: StartFleet,
    client: Client,
    stored_picture: str,
    services: EmbeddedServices,
    valkey: Valkey,
    wait_until: Callable[..., None],
) -> None:
    """Verdicts by queue, a rejection, a retry, dead letters, batches, scores, stages, and the model."""
    served = Served(free_ports(1)[0])
    bucket = client.settings.upload_bucket
    store_port = int(services.s3_endpoint.rpartition(":")[2])
    with FaultProxy(free_ports(1)[0]) as store:
        fleet(
            1,
            DNF_HTTP_PORT=str(served.port),
            DNF_S3_ENDPOINT_URL=f"http://127.0.0.1:{store.port}",
            DNF_VISIBILITY_TIMEOUT_SECONDS="6",
        )
        first = client.submit(bucket, stored_picture)
        wait_until(
            lambda: (served.figure("dnf_retries_total", reason="storage_unavailable") or 0) >= 1, "a retry"
        )
        store.target_port = store_port
        check_ids = [first, client.submit(bucket, "no/such.jpg")]
        check_ids += [client.submit(bucket, stored_picture, queue="image-checks.urgent") for _ in range(5)]
        with redis.Redis.from_url(valkey.url) as broker:
            broker.lpush("image-checks", "malformed", encode({"check_id": "bare"}, "image-checks"))
        client.wait_for(*check_ids, timeout_seconds=60)
        client.submit(bucket, stored_picture, check_id=first)
        wait_until(lambda: served.figure("dnf_redeliveries_total") == 1, "a redelivered check")
        wait_until(lambda: served.figure("dnf_checks_in_flight") == 0, "no check is in flight")
        samples = served.samples()

    def by(metric: str, /, **labels: str) -> float:
        return samples.get((metric, tuple(sorted(labels.items()))), 0.0)

    def judged(queue: str) -> float:
        outcomes = ("real", "review", "generated")
        return sum(by("dnf_checks_total", queue=queue, outcome=each, reason="") for each in outcomes)

    assert judged("image-checks") == 1
    assert judged("image-checks.urgent") == 5
    assert judged("image-checks.bulk") == 0
    assert by("dnf_checks_total", queue="image-checks", outcome="rejected", reason="missing") == 1
    assert by("dnf_dead_letters_total", reason="unreadable_entry") == 1
    assert by("dnf_dead_letters_total", reason="malformed_message") == 1
    assert by("dnf_batch_size_sum") == by("dnf_score_count") == 6
    for stage in ("decode", "prepare", "batch_wait", "dnf", "classify", "thumbnail"):
        assert by("dnf_stage_seconds_count", stage=stage) == 6, stage
    for stage in ("queue_wait", "fetch", "publish", "total"):
        assert by("dnf_stage_seconds_count", stage=stage) == 7, stage
    # Each check waited for at least one batch of NULL_BATCH_SECONDS, 0.1 seconds.
    assert by("dnf_stage_seconds_sum", stage="total") >= 0.6
    model = {"name": "null", "version": "0", "digest": "0" * 64, "device": "none", "dtype": "none"}
    assert by("dnf_model_info", **model) == 1
    assert by("process_resident_memory_bytes") > 0


def test_a_taken_port_is_reported_in_one_line(valkey: Valkey, chaos_environment: dict[str, str]) -> None:
    """Worker and exporter exit with status 1, before the model is loaded."""
    environment: dict[str, Any] = {**chaos_environment, "DNF_HTTP_PORT": str(valkey.port)}
    for command in ("run", "exporter"):
        finished = subprocess.run(
            [sys.executable, "-m", "tests.workers.null_worker", command],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert finished.returncode == 1
        assert f"cannot listen on [::]:{valkey.port}: Address already in use" in finished.stderr
        assert "Traceback" not in finished.stderr
        assert "model_loaded" not in finished.stderr
