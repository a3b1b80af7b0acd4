"""Uploads, messages and stores at fault: each has its reason, and the worker goes on."""

import io
import json
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from PIL import Image
from safetensors.numpy import load_file, save_file

from detector.bundle.files import open_bundle, write_manifest
from worker.broker.app import create_app
from worker.broker.dead_letters import DeadLetters
from worker.client import Client, NoVerdictError
from worker.contract.messages import CHECK_IMAGE, DeadLetterReason, RejectionEvent, RejectionReason, event_id
from worker.embedded.services import EmbeddedServices
from worker.embedded.startup import free_ports
from worker.settings import Settings

SCHEMAS = Path(__file__).parents[3] / "deploy" / "schemas"
MAX_BYTES, MAX_PIXELS = 200_000, 1_000_000
GOOD = "good.jpg"


def _settings(environment: Mapping[str, str]) -> Settings:
    values: dict[str, Any] = {name.removeprefix("DNF_").lower(): value for name, value in environment.items()}
    return Settings(**values)


def _encoded(image: Image.Image, image_format: str) -> bytes:
    image.save(file := io.BytesIO(), image_format)
    return file.getvalue()


def _png(side: int, bits: int, colour_type: int, compressed: bytes) -> bytes:
    """Return a PNG around pixels that are already compressed, whatever they are."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, bits, colour_type, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", compressed) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _bomb() -> bytes:
    """Return 400 million black pixels in 49 kB: below the limit of bytes, a whole PNG of one bit a pixel."""
    return _png(20_000, 1, 0, zlib.compress(bytes(20_000 * (1 + 20_000 // 8)), 9))


# Each upload, by the reason for which it is rejected; None where no object is stored.
UPLOADS: dict[str, bytes | None] = {
    "empty": b"",
    "not_an_image": b"A shopping list, whatever its name says.",
    "format_not_allowed": _encoded(Image.new("RGB", (64, 64)), "TIFF"),
    "too_many_pixels": _encoded(Image.new("1", (1001, 1000)), "PNG"),
    "too_small": _encoded(Image.new("RGB", (31, 64)), "PNG"),
    "too_much_metadata": b"\xff\xd8" + b"\xff\xfe\0\2" * 1001,
    "truncated": _encoded(Image.effect_noise((90, 90), 50), "JPEG")[:1500],
    "corrupt": _png(64, 8, 2, b"\x78\x9c" + b"\xff" * 500),
    "missing": None,
    "forbidden": b"secret",
    "bucket_not_allowed": None,
    "too_large": b"\xff" * (MAX_BYTES + 1),
    "changed": b"changed since",
    "digest_mismatch": b"other content",
    "bitmap": _encoded(Image.new("RGB", (64, 64)), "BMP"),
    "bomb": _bomb(),
}
# Uploads that are named for what they are, since another one stands for their reason.
NAMED: dict[str, RejectionReason] = {"bitmap": "format_not_allowed", "bomb": "too_many_pixels"}
FIELDS: dict[str, dict[str, Any]] = {
    "bucket_not_allowed": {"bucket": "someone-elses"},
    "changed": {"etag": '"00000000000000000000000000000000"'},
    "digest_mismatch": {"sha256": "0" * 64},
}


@pytest.fixture(scope="module")
def worker(worker_process: Callable[..., Any]) -> Any:
    """Provide this module's worker, with limits that small uploads exceed."""
    return worker_process({"DNF_MAX_BYTES": str(MAX_BYTES), "DNF_MAX_PIXELS": str(MAX_PIXELS)})


@pytest.fixture(scope="module")
def client(service_environment: dict[str, str]) -> Iterator[Client]:
    """Provide a client of this module's worker."""
    with Client(_settings(service_environment)) as client:
        yield client


@pytest.fixture(scope="module", autouse=True)
def _uploads(services: EmbeddedServices, make_picture: Callable[..., bytes]) -> Iterator[None]:
    """Store the uploads; nobody may read what lies under `rejected/forbidden`."""
    s3 = services.seaweedfs.client()
    s3.put_object(Bucket=services.bucket, Key=GOOD, Body=make_picture(3))
    for name, data in UPLOADS.items():
        if data is not None:
            s3.put_object(Bucket=services.bucket, Key=f"rejected/{name}", Body=data)
    statement = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:GetObject",
        "Resource": f"arn:aws:s3:::{services.bucket}/rejected/forbidden",
    }
    policy = {"Version": "2012-10-17", "Statement": [statement]}
    s3.put_bucket_policy(Bucket=services.bucket, Policy=json.dumps(policy))
    yield
    s3.delete_bucket_policy(Bucket=services.bucket)


def test_every_reason_of_the_contract_is_tested_here() -> None:
    """The list below is closed, as the contract's is."""
    assert {NAMED.get(name, name) for name in UPLOADS} == set(get_args(RejectionReason))


@pytest.mark.parametrize("name", UPLOADS)
def test_an_upload_at_fault_is_rejected_with_its_reason(
    worker: Any, client: Client, services: EmbeddedServices, tiny_bundle: Path, name: str
) -> None:
    """The event fits its schema, names the reason and a detail, and returns the metadata."""
    where = {"bucket": services.bucket, "key": f"rejected/{name}"}
    reason = NAMED.get(name, name)
    check_id = client.submit(**{**where, **FIELDS.get(name, {})}, metadata={"reason": reason})
    event = client.wait_for(check_id)[check_id]
    assert isinstance(event.envelope, RejectionEvent)
    data = event.envelope.data
    assert data.reason == reason, data.detail
    assert data.detail.endswith(".")
    assert data.metadata == {"reason": reason}
    assert event.thumbnail is None
    schema = json.loads((SCHEMAS / "image-rejected-v1.json").read_text())
    Draft202012Validator(schema).validate(json.loads(event.raw))
    raw = json.loads(event.raw)
    # The attributes that CloudEvents 1.0 requires.
    assert (raw["specversion"], raw["type"], raw["source"]) == ("1.0", "image.rejected.v1", "dnf-moderation")
    assert raw["id"] == event_id(check_id, open_bundle(tiny_bundle).digest, "default")
    (line,) = worker.wait_for_event("image_rejected", check_id=check_id)
    assert line["reason"] == reason


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (([], {}), "bucket: Field required"),
        ((["not an object"], {}), "Input should be a valid dictionary"),
        (([["bucket", "key"]], {}), "Input should be a valid dictionary"),
        (([], {"bucket": "uploads", "key": "a"}), "bucket: Field required"),
        (([{"bucket": "uploads"}], {}), "key: Field required"),
        (([{"bucket": "uploads", "key": "a", "extra": 1}], {}), "extra: Extra inputs are not permitted"),
        (([{"bucket": "uploads", "key": "a", "metadata": {"a": "x" * 5000}}], {}), "metadata: Value error"),
        (([{"bucket": "uploads", "key": "a"}, 2], {"more": 3}), "bucket: Field required"),
    ],
)
def test_a_malformed_message_becomes_a_dead_letter_and_is_kept(
    worker: Any,
    client: Client,
    wait_until: Callable[..., None],
    arguments: tuple[list[Any], dict[str, Any]],
    problem: str,
) -> None:
    """The reason and the message stand in the stream of dead letters, and no event is published."""
    args, kwargs = arguments
    dead_letters = DeadLetters.connect(client.settings)
    before, position = len(list(dead_letters.read())), client.position()
    app = create_app(client.settings)
    app.send_task(CHECK_IMAGE, args=args, kwargs=kwargs)
    wait_until(lambda: len(list(dead_letters.read())) > before, "a dead letter")
    dead_letter = list(dead_letters.read())[-1].dead_letter
    assert dead_letter is not None
    assert dead_letter.reason == "malformed_message"
    assert problem in dead_letter.detail
    whole = args[0] if len(args) == 1 and not kwargs else {"args": args, "kwargs": kwargs}
    assert json.loads(dead_letter.message) == whole
    schema = json.loads((SCHEMAS / "dead-letter.json").read_text())
    Draft202012Validator(schema).validate(dead_letter.model_dump(mode="json"))
    assert client.position() == position
    worker.wait_for_event("check_dead_lettered", count=before + 1)
    dead_letters.close()
    app.close()


def test_a_check_under_an_unknown_policy_becomes_a_dead_letter(
    worker: Any, client: Client, services: EmbeddedServices
) -> None:
    """Nobody is judged by rules that do not exist; whoever waits is told at once."""
    check_id = client.submit(services.bucket, GOOD, policy="stricter")
    with pytest.raises(NoVerdictError, match="unknown_policy") as failed:
        client.wait_for(check_id, timeout_seconds=60)
    assert failed.value.dead_letters[check_id].reason == "unknown_policy"
    assert failed.value.missing == frozenset()
    worker.wait_for_event("check_dead_lettered", check_id=check_id)


def test_after_all_of_that_the_worker_still_judges(
    worker: Any, client: Client, services: EmbeddedServices
) -> None:
    """It is the same process, and it answers a good picture."""
    check_id = client.submit(services.bucket, GOOD)
    event = client.wait_for(check_id)[check_id]
    assert not isinstance(event.envelope, RejectionEvent)
    assert len(worker.wait_for_event("worker_ready")) == 1


def test_a_store_that_cannot_be_reached_is_tried_again_and_then_reported(
    worker_process: Callable[..., Any], service_environment: dict[str, str], services: EmbeddedServices
) -> None:
    """No verdict is made up: after the retries that are set the check is a dead letter, on its own queue."""
    environment = {
        "DNF_REDIS_URL": service_environment["DNF_REDIS_URL"].rpartition("/")[0] + "/202",
        "DNF_S3_ENDPOINT_URL": f"http://127.0.0.1:{free_ports(1)[0]}",
        "DNF_MAX_RETRIES": "2",
    }
    worker = worker_process(environment)
    with Client(_settings({**service_environment, **environment})) as client:
        check_id = client.submit(services.bucket, GOOD, queue="image-checks.urgent")
        with pytest.raises(NoVerdictError) as failed:
            client.wait_for(check_id, timeout_seconds=60)
        dead_letter = failed.value.dead_letters[check_id]
    assert (dead_letter.reason, dead_letter.attempts) == ("storage_unavailable", 3)
    assert json.loads(dead_letter.message)["check_id"] == check_id
    postponed = worker.wait_for_event("check_retried", count=2, check_id=check_id)
    assert [line["retry"] for line in postponed] == [1, 2]
    assert all("StorageUnavailableError" in line["error"] for line in postponed)
    assert worker.stop() == 0


def test_a_worker_with_wrong_keys_rejects_nobodys_upload(
    worker_process: Callable[..., Any], service_environment: dict[str, str], services: EmbeddedServices
) -> None:
    """The operator's mistake is no verdict on the upload."""
    environment = {
        "DNF_REDIS_URL": service_environment["DNF_REDIS_URL"].rpartition("/")[0] + "/203",
        "DNF_S3_SECRET_ACCESS_KEY": "not-the-right-one",
        "DNF_MAX_RETRIES": "0",
    }
    worker = worker_process(environment)
    with Client(_settings({**service_environment, **environment})) as client:
        check_id = client.submit(services.bucket, GOOD)
        with pytest.raises(NoVerdictError) as failed:
            client.wait_for(check_id, timeout_seconds=60)
    assert failed.value.dead_letters[check_id].reason == "storage_unavailable"
    assert "SignatureDoesNotMatch" in failed.value.dead_letters[check_id].detail
    assert "not-the-right-one" not in worker.log.read_text()


def test_a_model_that_gives_no_number_calls_nobody_real(
    worker_process: Callable[..., Any],
    service_environment: dict[str, str],
    services: EmbeddedServices,
    tiny_bundle: Path,
    tmp_path: Path,
) -> None:
    """Broken weights make no verdict but, after two more tries, a dead letter."""
    broken = shutil.copytree(tiny_bundle, tmp_path / "broken")
    weights = load_file(broken / "classifier.safetensors")
    ruined = {name: np.full_like(w, np.nan) if w.dtype == np.float32 else w for name, w in weights.items()}
    save_file(ruined, broken / "classifier.safetensors")
    write_manifest(broken, open_bundle(tiny_bundle).manifest)
    environment = {
        "DNF_REDIS_URL": service_environment["DNF_REDIS_URL"].rpartition("/")[0] + "/204",
        "DNF_BUNDLE": str(broken),
    }
    worker = worker_process(environment)
    with Client(_settings({**service_environment, **environment})) as client:
        check_id = client.submit(services.bucket, GOOD)
        with pytest.raises(NoVerdictError) as failed:
            client.wait_for(check_id, timeout_seconds=60)
    dead_letter = failed.value.dead_letters[check_id]
    assert (dead_letter.reason, dead_letter.attempts) == ("model_failed", 3)
    assert worker.stop() == 0


def test_the_reasons_for_dead_letters_are_a_closed_list() -> None:
    """The schema names the same reasons as the code."""
    schema = json.loads((SCHEMAS / "dead-letter.json").read_text())
    assert schema["properties"]["reason"]["enum"] == list(get_args(DeadLetterReason))
