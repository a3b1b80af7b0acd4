"""dnf-worker doctor finds what is wrong with real services, and says what to set."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from click.testing import CliRunner

from tests.broken_broker import full_disk, valkey_on_a_small_disk
from worker.broker.dead_letters import DeadLetters, dead_letter_of_call
from worker.cli import main
from worker.client import Client
from worker.contract.messages import InvalidMessageError
from worker.embedded.services import EmbeddedServices, Valkey
from worker.embedded.startup import free_ports
from worker.operations.doctor.check import Check
from worker.operations.doctor.examination import examine
from worker.settings import Settings

WRONG_KEYS = {"DNF_S3_SECRET_ACCESS_KEY": "hidden-and-wrong"}


def _settings(environment: Mapping[str, str]) -> Settings:
    values: dict[str, Any] = {name.removeprefix("DNF_").lower(): value for name, value in environment.items()}
    return Settings(**values)


@pytest.fixture(scope="module")
def environment(services: EmbeddedServices, tiny_bundle: Path) -> dict[str, str]:
    """Return DNF_ variables with which nothing is wrong: database 0 of the session's broker is unused."""
    return {
        **services.environment(),
        "DNF_REDIS_URL": services.redis_url.removesuffix("/0") + "/208",
        "DNF_BUNDLE": str(tiny_bundle),
        "DNF_DEVICE": "cpu",
    }


def _found(environment: Mapping[str, str], **changes: str) -> dict[str, Check]:
    found = {check.name: check for check in examine(_settings({**environment, **changes}))}
    for check in found.values():
        assert bool(check.wrong) == bool(check.mend) == (check.outcome != "ok"), check
    return found


def _doctor(environment: Mapping[str, str], *arguments: str, **changes: str) -> Any:
    finished = CliRunner().invoke(
        main, ["doctor", *arguments], env={**environment, **changes, "COLUMNS": "200"}
    )
    assert finished.exception is None or isinstance(finished.exception, SystemExit)
    return finished


def test_where_nothing_is_wrong_every_check_is_ok(environment: dict[str, str]) -> None:
    """The exit status is 0; the table and the JSON name the same checks."""
    finished = _doctor(environment, "--json")
    report = json.loads(finished.stdout)
    assert {check["name"]: check["outcome"] for check in report["checks"]} == dict.fromkeys(
        [
            "visibility timeout",
            "retries",
            "socket time limits",
            "store time limits",
            "publish once",
            "threads",
            "broker",
            "broker version",
            "append-only file",
            "eviction",
            "memory",
            "broker clock",
            "queues",
            "verdict stream",
            "dead letters",
            "other applications",
            "store: test-uploads",
            "store clock",
            "bundle",
            "device",
        ],
        "ok",
    )
    assert (report["outcome"], finished.exit_code) == ("ok", 0)
    table = _doctor(environment)
    assert table.exit_code == 0
    assert all(check["name"] in table.stdout for check in report["checks"])


@pytest.mark.parametrize(
    ("name", "outcome", "changes"),
    [
        ("visibility timeout", "warning", {"DNF_CHECK_DEADLINE_SECONDS": "119"}),
        ("retries", "warning", {"DNF_MAX_RETRIES": "0"}),
        ("store time limits", "warning", {"DNF_S3_TIMEOUT_SECONDS": "60"}),
        ("publish once", "fault", {"DNF_PUBLISH_ONCE_TTL_SECONDS": "600"}),
        ("threads", "warning", {"DNF_THREADS": "16", "DNF_BATCH_SIZE": "16"}),
        ("memory", "fault", {"DNF_VERDICT_STREAM_MAX_LENGTH": "1000000000"}),
        ("device", "fault", {"DNF_DEVICE": "cuda:63"}),
        ("device", "fault", {"DNF_DEVICE": "gpu"}),
        ("bundle", "fault", {"DNF_BUNDLE": "no-such-bundle"}),
        ("store: nowhere", "fault", {"DNF_ALLOWED_BUCKETS": "nowhere"}),
        ("store", "fault", {"DNF_ALLOWED_BUCKETS": "[]"}),
    ],
)
def test_a_setting_at_fault_is_found_and_no_other(
    environment: dict[str, str], name: str, outcome: str, changes: dict[str, str]
) -> None:
    """The check of that name has the outcome, with what is wrong and what to set; the others are ok."""
    found = _found(environment, **changes)
    assert {check.name: check.outcome for check in found.values() if check.outcome != "ok"} == {name: outcome}


def test_a_visibility_timeout_that_a_frozen_connection_outlasts_is_found(environment: dict[str, str]) -> None:
    """A connection is given up after five seconds; a check must not be delivered elsewhere before."""
    changes = {"DNF_VISIBILITY_TIMEOUT_SECONDS": "5", "DNF_CHECK_DEADLINE_SECONDS": "4"}
    assert _found(environment, **changes)["socket time limits"].outcome == "fault"


def test_a_bundle_that_was_tampered_with_is_found(
    environment: dict[str, str], tiny_bundle: Path, tmp_path: Path
) -> None:
    """One changed byte in the weights is a fault that names the file."""
    tampered = shutil.copytree(tiny_bundle, tmp_path / "tampered")
    weights = tampered / "classifier.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    check = _found(environment, DNF_BUNDLE=str(tampered))["bundle"]
    assert check.outcome == "fault"
    assert "digest_mismatch" in check.seen
    assert "classifier.safetensors" in check.wrong


@pytest.fixture(scope="module")
def careless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Provide a broker that keeps nothing on disk, evicts, and has little memory."""
    options = ["--appendonly", "no", "--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru"]
    server = Valkey(tmp_path_factory.mktemp("careless"), options=options)
    server.start()
    yield server
    server.stop()


def test_a_broker_that_would_lose_verdicts_is_found(environment: dict[str, str], careless: Valkey) -> None:
    """No append-only file, eviction and too little memory are faults, and the exit status is 1."""
    found = _found(environment, DNF_REDIS_URL=careless.url)
    assert {name for name, check in found.items() if check.outcome == "fault"} == {
        "append-only file",
        "eviction",
        "memory",
    }
    assert "appendonly yes" in found["append-only file"].mend
    assert found["eviction"].seen == "allkeys-lru"
    finished = _doctor(environment, DNF_REDIS_URL=careless.url)
    assert finished.exit_code == 1
    assert "noeviction" in finished.stdout


def test_a_broker_whose_disk_is_full_is_told_from_one_that_is_not_there(
    environment: dict[str, str], tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    """It answers, though with refusals alone: what is at fault is its disk, and not its address."""
    server = valkey_on_a_small_disk(tmp_path)
    server.start()
    with full_disk(server), redis.Redis.from_url(server.url) as broker:
        broker.set("more than the disk takes", bytes(1000))
        wait_until(lambda: _refuses_even_a_ping(broker), "a disk that is full")
        found = _found(environment, DNF_REDIS_URL=server.url)
    server.stop()
    assert found["broker"].outcome == "ok"
    assert found["append-only file"].outcome == "fault"
    assert "MISCONF" in found["append-only file"].wrong
    assert "eviction" not in found


def _refuses_even_a_ping(broker: redis.Redis) -> bool:
    try:
        broker.ping()
    except redis.ResponseError as error:
        return str(error).startswith("MISCONF")
    return False


def test_what_waits_on_the_broker_is_told(environment: dict[str, str]) -> None:
    """Dead letters, queues near their limit and a young full stream are warnings; the exit status is 0."""
    url = environment["DNF_REDIS_URL"].rpartition("/")[0] + "/210"
    changes = {"DNF_REDIS_URL": url, "DNF_MAX_QUEUE_LENGTH": "2", "DNF_VERDICT_STREAM_MAX_LENGTH": "1"}
    settings = _settings({**environment, **changes})
    with redis.Redis.from_url(url) as broker:
        broker.flushdb()
        broker.xadd(settings.verdict_stream, {"event": "{}"})
    with Client(settings) as client:
        client.submit("uploads", "a.jpg")
        client.submit("uploads", "b.jpg")
    dead_letters = DeadLetters.connect(settings)
    dead_letters.write(
        dead_letter_of_call([{}], {}, None, InvalidMessageError("malformed_message", "No."), 0)
    )
    dead_letters.close()
    with Celery("another", broker=url) as other:
        other.send_task("theirs")
    found = _found(environment, **changes)
    warned = {name for name, check in found.items() if check.outcome == "warning"}
    assert warned == {"queues", "verdict stream", "dead letters", "other applications"}
    assert "celery" in found["other applications"].seen
    assert _doctor(environment, **changes).exit_code == 0


def test_keys_that_may_not_read_a_bucket_are_told_apart_from_wrong_keys(
    environment: dict[str, str], services: EmbeddedServices
) -> None:
    """Wrong keys are named as such; good keys that may not read have the rights to ask for."""
    wrong = _found(environment, **WRONG_KEYS)["store: test-uploads"]
    assert (wrong.outcome, wrong.seen) == ("fault", "403 SignatureDoesNotMatch")
    assert "does not accept the keys" in wrong.wrong
    s3 = services.seaweedfs.client()
    s3.create_bucket(Bucket="closed")
    denied = {"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": "arn:aws:s3:::closed/*"}
    listing = {**denied, "Action": "s3:ListBucket", "Resource": "arn:aws:s3:::closed"}
    policy = {"Version": "2012-10-17", "Statement": [denied, listing]}
    s3.put_object(Bucket="closed", Key="a.jpg", Body=b"content")
    s3.put_bucket_policy(Bucket="closed", Policy=json.dumps(policy))
    closed = _found(environment, DNF_ALLOWED_BUCKETS="closed")["store: closed"]
    assert (closed.outcome, closed.seen) == ("fault", "403 AccessDenied")
    assert "s3:GetObject" in closed.mend


def test_a_place_without_objects_is_no_fault(environment: dict[str, str]) -> None:
    """A prefix to which nothing was uploaded yet may be read."""
    check = _found(environment, DNF_ALLOWED_BUCKETS="test-uploads/none-yet/")["store: test-uploads/none-yet/"]
    assert (check.outcome, check.seen) == ("ok", "nothing in it, and it may be read")


@pytest.mark.parametrize("json_wanted", [True, False])
def test_services_that_cannot_be_reached_are_one_fault_each(
    environment: dict[str, str], *, json_wanted: bool
) -> None:
    """One line each and no traceback; the rest is examined all the same, and no password is shown."""
    port = free_ports(1)[0]
    changes = {
        "DNF_REDIS_URL": f"redis://worker:hidden-password@127.0.0.1:{port}/0",
        "DNF_S3_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }
    finished = _doctor(environment, *(["--json"] if json_wanted else []), **changes)
    assert finished.exit_code == 1
    assert "Traceback" not in finished.output
    assert "hidden-password" not in finished.output
    if json_wanted:
        report = json.loads(finished.stdout)
        faults = [check for check in report["checks"] if check["outcome"] == "fault"]
        assert [check["name"] for check in faults] == ["broker", "store: test-uploads"]
        assert all(str(port) in check["wrong"] and "\n" not in check["wrong"] for check in faults)


def test_a_wrong_setting_is_wrong_usage(environment: dict[str, str]) -> None:
    """Settings that no worker starts with have exit status 2 and name the variable."""
    finished = _doctor(environment, DNF_BATCH_SIZE="many")
    assert finished.exit_code == 2
    assert "DNF_BATCH_SIZE" in finished.output


def test_clocks_that_are_apart_are_found(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """This machine's clock is set an hour ahead: the broker's and the store's are both told of."""
    import time

    real = time.time
    monkeypatch.setattr("worker.operations.doctor.broker.time", _Clock(real, 3600))
    monkeypatch.setattr("worker.operations.doctor.store.time", _Clock(real, 3600))
    found = _found(environment)
    assert found["broker clock"].outcome == found["store clock"].outcome == "fault"
    assert found["broker clock"].seen.startswith("3600")


class _Clock:
    """The module time, some seconds ahead."""

    def __init__(self, real: Callable[[], float], ahead: float) -> None:
        self.time = lambda: real() + ahead
