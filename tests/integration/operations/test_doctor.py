"""dnf-worker doctor finds the faults of real services and says how to fix them."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from click.testing import CliRunner

from tests.broken_broker import configured, full_disk, valkey_on_a_small_disk
from tests.conftest import settings_of
from worker.broker.dead_letters import DeadLetters, dead_letter_of_check
from worker.broker.faults import BrokerRefusedError, verify_trust
from worker.broker.keys import WORKERS_ALIVE
from worker.cli import main
from worker.client import Client
from worker.contract.messages import InvalidMessageError
from worker.embedded.services import EmbeddedServices
from worker.embedded.startup import free_ports
from worker.embedded.valkey import Valkey
from worker.operations.doctor import diagnose
from worker.operations.doctor.diagnosis import Diagnosis
from worker.settings import Settings

WRONG_KEYS = {"DNF_S3_SECRET_ACCESS_KEY": "hidden-and-wrong"}


@pytest.fixture(scope="module")
def durable_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Provide a broker that loses nothing."""
    server = Valkey(tmp_path_factory.mktemp("durable"), options=["--appendfsync", "always"])
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def environment(
    service_environment: dict[str, str], durable_broker: Valkey, tiny_bundle: Path
) -> dict[str, str]:
    """Return DNF_ variables without any fault."""
    return {
        **service_environment,
        "DNF_REDIS_URL": durable_broker.url,
        "DNF_BUNDLE": str(tiny_bundle),
        "DNF_DEVICE": "cpu",
    }


@pytest.fixture(autouse=True)
def _no_variables_of_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the variables that control the tests, which are no settings."""
    for name in [name for name in os.environ if name.startswith("DNF_")]:
        monkeypatch.delenv(name)


def _diagnoses(environment: Mapping[str, str], **changes: str) -> dict[str, Diagnosis]:
    found = {diagnosis.name: diagnosis for diagnosis in diagnose(settings_of({**environment, **changes}))}
    for diagnosis in found.values():
        texts = (diagnosis.problem, diagnosis.remedy)
        assert all(texts) if diagnosis.outcome != "ok" else not any(texts), diagnosis
    return found


def _doctor(environment: Mapping[str, str], *arguments: str, **changes: str) -> Any:
    finished = CliRunner().invoke(
        main, ["doctor", *arguments], env={**environment, **changes, "COLUMNS": "200"}
    )
    assert finished.exception is None or isinstance(finished.exception, SystemExit)
    return finished


def test_without_a_fault_every_diagnosis_is_ok(environment: dict[str, str]) -> None:
    """The exit status is 0; the table and the JSON have the same diagnoses."""
    finished = _doctor(environment, "--json")
    report = json.loads(finished.stdout)
    assert {each["name"]: each["outcome"] for each in report["diagnoses"]} == dict.fromkeys(
        [
            "variables",
            "visibility timeout",
            "retries",
            "socket timeouts",
            "storage timeout",
            "publish once",
            "threads",
            "broker",
            "broker version",
            "broker role",
            "append-only file",
            "eviction",
            "memory",
            "broker clock",
            "workers",
            "queues",
            "other queues",
            "verdict stream",
            "consumer groups",
            "dead letters",
            "other applications",
            "storage: test-uploads",
            "thumbnails",
            "storage clock",
            "bundle",
            "device",
        ],
        "ok",
    )
    assert (report["outcome"], finished.exit_code) == ("ok", 0)
    table = _doctor(environment)
    assert table.exit_code == 0
    assert all(each["name"] in table.stdout for each in report["diagnoses"])


@pytest.mark.parametrize(
    ("name", "outcome", "changes"),
    [
        ("visibility timeout", "warning", {"DNF_CHECK_DEADLINE_SECONDS": "119"}),
        ("retries", "warning", {"DNF_MAX_RETRIES": "0"}),
        ("storage timeout", "warning", {"DNF_S3_TIMEOUT_SECONDS": "60"}),
        ("publish once", "fault", {"DNF_PUBLISH_ONCE_TTL_SECONDS": "600"}),
        ("threads", "warning", {"DNF_THREADS": "16", "DNF_BATCH_SIZE": "16"}),
        ("memory", "fault", {"DNF_VERDICT_STREAM_MAX_LENGTH": "1000000000"}),
        ("device", "fault", {"DNF_DEVICE": "cuda:63"}),
        ("device", "fault", {"DNF_DEVICE": "gpu"}),
        ("bundle", "fault", {"DNF_BUNDLE": "no-such-bundle"}),
        ("storage: nowhere", "fault", {"DNF_ALLOWED_BUCKETS": "nowhere"}),
        ("storage", "fault", {"DNF_ALLOWED_BUCKETS": "[]"}),
    ],
)
def test_a_faulty_setting_is_the_only_one_found(
    environment: dict[str, str], name: str, outcome: str, changes: dict[str, str]
) -> None:
    """The diagnosis of that name has the outcome; the others are ok."""
    found = _diagnoses(environment, **changes)
    assert {each.name: each.outcome for each in found.values() if each.outcome != "ok"} == {name: outcome}


def test_a_visibility_timeout_below_the_socket_timeout_is_found(
    environment: dict[str, str],
) -> None:
    """A frozen connection times out after five seconds; until then its checks must not be redelivered."""
    changes = {"DNF_VISIBILITY_TIMEOUT_SECONDS": "5", "DNF_CHECK_DEADLINE_SECONDS": "4"}
    assert _diagnoses(environment, **changes)["socket timeouts"].outcome == "fault"


def test_a_tampered_bundle_is_found(environment: dict[str, str], tiny_bundle: Path, tmp_path: Path) -> None:
    """One changed byte in the weights is a fault that names the file."""
    tampered = shutil.copytree(tiny_bundle, tmp_path / "tampered")
    weights = tampered / "classifier.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    bundle = _diagnoses(environment, DNF_BUNDLE=str(tampered))["bundle"]
    assert bundle.outcome == "fault"
    assert "digest_mismatch" in bundle.observed
    assert "classifier.safetensors" in bundle.problem


@pytest.fixture(scope="module")
def unsafe_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Provide a broker that does not persist, evicts keys and has little memory."""
    options = ["--appendonly", "no", "--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru"]
    server = Valkey(tmp_path_factory.mktemp("unsafe"), options=options)
    server.start()
    yield server
    server.stop()


def test_a_broker_that_can_lose_verdicts_is_found(environment: dict[str, str], unsafe_broker: Valkey) -> None:
    """No append-only file, eviction and too little memory are faults, and the exit status is 1."""
    found = _diagnoses(environment, DNF_REDIS_URL=unsafe_broker.url)
    assert {name for name, each in found.items() if each.outcome == "fault"} == {
        "append-only file",
        "eviction",
        "memory",
    }
    assert "appendonly" in found["append-only file"].remedy
    assert found["eviction"].observed == "allkeys-lru"
    finished = _doctor(environment, DNF_REDIS_URL=unsafe_broker.url)
    assert finished.exit_code == 1
    assert "noeviction" in finished.stdout


@pytest.mark.parametrize(("policy", "loss"), [("everysec", "while its disk is slow"), ("no", "loses power")])
def test_a_broker_that_confirms_before_it_writes_is_found(
    environment: dict[str, str], durable_broker: Valkey, policy: str, loss: str
) -> None:
    """The warning says what such a broker loses, and names the value that loses nothing."""
    with redis.Redis.from_url(durable_broker.url) as admin, configured(admin, appendfsync=policy):
        found = _diagnoses(environment)["append-only file"]
    assert (found.outcome, found.observed) == ("warning", f"appendfsync {policy}")
    assert loss in found.problem
    assert found.remedy == "Set appendfsync to always."


def test_a_broker_with_a_full_disk_is_told_from_an_unreachable_one(
    environment: dict[str, str], tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    """It answers every command with a refusal: the fault is its disk, not its address."""
    server = valkey_on_a_small_disk(tmp_path)
    server.start()
    with full_disk(server), redis.Redis.from_url(server.url) as broker:
        broker.set("more than the disk takes", bytes(1000))
        wait_until(lambda: _refuses_even_a_ping(broker), "a disk that is full")
        found = _diagnoses(environment, DNF_REDIS_URL=server.url)
    server.stop()
    assert found["broker"].outcome == "ok"
    assert found["append-only file"].outcome == "fault"
    assert "refuses writes" in found["append-only file"].problem
    assert "eviction" not in found


def test_a_cluster_is_named_by_the_doctor_and_refused_at_start_up(
    environment: dict[str, str], cluster: Valkey
) -> None:
    """Its nodes answer, and refuse the scripts that need several keys."""
    found = _diagnoses(environment, DNF_REDIS_URL=cluster.url)
    assert found["broker role"].outcome == "fault"
    assert "Cluster" in found["broker role"].problem
    with pytest.raises(BrokerRefusedError, match="Cluster"):
        verify_trust(Settings(redis_url=cluster.url).broker)  # type: ignore[arg-type]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Valkey]:
    """Provide a Redis Cluster of one node."""
    (bus,) = free_ports(1)
    server = Valkey(tmp_path / "cluster", options=["--cluster-enabled", "yes", "--cluster-port", str(bus)])
    server.start()
    with redis.Redis.from_url(server.url) as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    yield server
    server.stop()


def _refuses_even_a_ping(broker: redis.Redis) -> bool:
    try:
        broker.ping()
    except redis.ResponseError as error:
        return str(error).startswith("MISCONF")
    return False


def test_queues_streams_and_other_applications_raise_warnings(
    environment: dict[str, str], new_database: Callable[[], str]
) -> None:
    """Dead letters, queues near their limit without a worker, another application: the status is 0."""
    url = new_database()
    changes = {"DNF_REDIS_URL": url, "DNF_MAX_QUEUE_LENGTH": "2", "DNF_VERDICT_STREAM_MAX_LENGTH": "6"}
    settings = settings_of({**environment, **changes})
    with redis.Redis.from_url(url) as broker:
        for _ in range(5):
            broker.xadd(settings.verdict_stream, {"event": "{}"})
    with Client(settings) as client:
        client.submit("uploads", "a.jpg")
        client.submit("uploads", "b.jpg")
    dead_letters = DeadLetters.connect(settings)
    dead_letters.write(dead_letter_of_check("{}", None, InvalidMessageError("malformed_message", "No."), 0))
    dead_letters.close()
    with Celery("another", broker=url) as other:
        other.send_task("theirs")
    found = _diagnoses(environment, **changes)
    warned = {name for name, each in found.items() if each.outcome == "warning"}
    assert warned == {
        "append-only file",  # the tests' own broker writes to its disk later
        "workers",
        "queues",
        "other queues",
        "verdict stream",
        "dead letters",
        "other applications",
    }
    assert "celery" in found["other applications"].observed
    assert "2 checks wait" in found["workers"].observed
    assert "queue=" in found["other queues"].remedy
    assert _doctor(environment, **changes).exit_code == 0


def test_limits_at_which_workers_pause_are_faults(
    environment: dict[str, str], new_database: Callable[[], str]
) -> None:
    """A full stream names its remedy by the age of its events: young ones stay whatever groups do."""
    url = new_database()
    changes = {
        "DNF_REDIS_URL": url,
        "DNF_VERDICT_STREAM_MAX_LENGTH": "1",
        "DNF_DEAD_LETTER_STREAM_MAX_LENGTH": "1",
    }
    with redis.Redis.from_url(url) as broker:
        broker.xadd("verdicts", {"event": "{}"})
        broker.xadd("dead-letters", {"letter": "{}"})
    found = _diagnoses(environment, **changes)
    assert {name for name, each in found.items() if each.outcome == "fault"} == {
        "verdict stream",
        "dead letters",
    }
    assert "slowest group" in found["verdict stream"].remedy


def test_a_group_that_is_about_to_lose_events_is_named(
    environment: dict[str, str], new_database: Callable[[], str]
) -> None:
    """A warning from half of the retention, a fault near its end; a prompt group is only shown."""
    url = new_database()
    with redis.Redis.from_url(url) as broker:
        now: Any = broker.time()
        broker.xadd("verdicts", {"event": "{}"}, id=f"{(int(now[0]) - 6000) * 1000}-1")
        broker.xgroup_create("verdicts", "away", id="0")
        broker.xgroup_create("verdicts", "prompt", id="0")
        read: Any = broker.xreadgroup("prompt", "member", {"verdicts": ">"})
        broker.xack("verdicts", "prompt", read[0][1][0][0])
    for retention, outcome in ((20_000, "ok"), (10_000, "warning"), (6_100, "fault")):
        groups = _diagnoses(environment, DNF_REDIS_URL=url, DNF_VERDICT_RETENTION_SECONDS=str(retention))
        assert groups["consumer groups"].outcome == outcome
        assert "away" in groups["consumer groups"].observed
        assert ("prompt" in groups["consumer groups"].observed) == (outcome == "ok")


def test_a_misspelt_queue_and_a_misspelt_variable_are_found(
    environment: dict[str, str], new_database: Callable[[], str]
) -> None:
    """Each with the name that was meant; lists of a priority and of others are not ours to name."""
    url = new_database()
    with redis.Redis.from_url(url) as broker:
        for name in ("image-check", "image-checks\x06\x163", "sessions"):
            broker.lpush(name, "{}")
    found = _diagnoses(environment, DNF_REDIS_URL=url)
    assert (found["other queues"].outcome, found["other queues"].observed) == ("warning", "image-check")
    assert "image-checks" in found["other queues"].remedy
    report = json.loads(_doctor(environment, "--json", DNF_REDS_URL=url).stdout)
    (variables,) = [each for each in report["diagnoses"] if each["name"] == "variables"]
    assert (variables["outcome"], variables["observed"]) == ("warning", "DNF_REDS_URL (DNF_REDIS_URL?)")


def test_living_workers_are_counted(environment: dict[str, str], new_database: Callable[[], str]) -> None:
    """Those that took checks within the last seconds, by the broker's clock."""
    url = new_database()
    with redis.Redis.from_url(url) as broker:
        now: Any = broker.time()
        broker.zadd(WORKERS_ALIVE, {"one": int(now[0]), "two": int(now[0]), "silent": int(now[0]) - 60})
        assert _diagnoses(environment, DNF_REDIS_URL=url)["workers"].observed.startswith("2 took checks")


def test_a_bucket_for_thumbnails_must_take_them(
    environment: dict[str, str], services: EmbeddedServices
) -> None:
    """Nothing is written to find out."""
    s3 = services.seaweedfs.client()
    for bucket in ("thumbnails-open", "thumbnails-closed"):
        s3.create_bucket(Bucket=bucket)
    denied = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:PutObject",
        "Resource": "arn:aws:s3:::thumbnails-closed/*",
    }
    policy = {"Version": "2012-10-17", "Statement": [denied]}
    s3.put_bucket_policy(Bucket="thumbnails-closed", Policy=json.dumps(policy))
    taken = _diagnoses(environment, DNF_THUMBNAIL_BUCKET="thumbnails-open")["thumbnails"]
    assert (taken.outcome, "thumbnails-open" in taken.observed) == ("ok", True)
    assert "Contents" not in s3.list_objects_v2(Bucket="thumbnails-open")
    refused = _diagnoses(environment, DNF_THUMBNAIL_BUCKET="thumbnails-closed")["thumbnails"]
    assert (refused.outcome, refused.observed) == ("fault", "thumbnails-closed: AccessDenied")


def test_missing_permissions_are_told_from_wrong_keys(
    environment: dict[str, str], services: EmbeddedServices
) -> None:
    """Wrong keys are named as such; for valid keys the remedy names the missing permissions."""
    wrong = _diagnoses(environment, **WRONG_KEYS)["storage: test-uploads"]
    assert (wrong.outcome, wrong.observed) == ("fault", "403 SignatureDoesNotMatch")
    assert "does not accept the keys" in wrong.problem
    s3 = services.seaweedfs.client()
    s3.create_bucket(Bucket="closed")
    denied = {"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": "arn:aws:s3:::closed/*"}
    listing = {**denied, "Action": "s3:ListBucket", "Resource": "arn:aws:s3:::closed"}
    policy = {"Version": "2012-10-17", "Statement": [denied, listing]}
    s3.put_object(Bucket="closed", Key="a.jpg", Body=b"content")
    s3.put_bucket_policy(Bucket="closed", Policy=json.dumps(policy))
    closed = _diagnoses(environment, DNF_ALLOWED_BUCKETS="closed")["storage: closed"]
    assert (closed.outcome, closed.observed) == ("fault", "403 AccessDenied")
    assert "s3:GetObject" in closed.remedy


def test_an_empty_prefix_is_ok(environment: dict[str, str]) -> None:
    """A prefix without uploads is readable."""
    found = _diagnoses(environment, DNF_ALLOWED_BUCKETS="test-uploads/none-yet/")
    prefix = found["storage: test-uploads/none-yet/"]
    assert (prefix.outcome, prefix.observed) == ("ok", "readable and empty")


@pytest.mark.parametrize("json_wanted", [True, False])
def test_each_unreachable_service_is_one_fault(environment: dict[str, str], *, json_wanted: bool) -> None:
    """One line each, no traceback, no password; the rest is diagnosed all the same."""
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
        faults = [each for each in report["diagnoses"] if each["outcome"] == "fault"]
        assert [each["name"] for each in faults] == ["broker", "storage: test-uploads"]
        assert all(str(port) in each["problem"] and "\n" not in each["problem"] for each in faults)


def test_an_invalid_setting_is_wrong_usage(environment: dict[str, str]) -> None:
    """The exit status is 2 and the message names the variable."""
    finished = _doctor(environment, DNF_BATCH_SIZE="many")
    assert finished.exit_code == 2
    assert "DNF_BATCH_SIZE" in finished.output


def test_clock_differences_are_found(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With this machine's clock an hour ahead, both the broker's and the store's clock are faults."""
    import time

    real = time.time
    monkeypatch.setattr("worker.operations.doctor.broker.time", _Clock(real, 3600))
    monkeypatch.setattr("worker.operations.doctor.storage.time", _Clock(real, 3600))
    found = _diagnoses(environment)
    assert found["broker clock"].outcome == found["storage clock"].outcome == "fault"
    assert found["broker clock"].observed.startswith("3600")


class _Clock:
    """The module `time`, some seconds ahead."""

    def __init__(self, real: Callable[[], float], ahead: float) -> None:
        self.time = lambda: real() + ahead
        self.monotonic = real
