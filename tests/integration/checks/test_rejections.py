"""Uploads, messages and stores at fault: each is answered with its reason, and the worker goes on."""

import base64
import io
import json
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from PIL import Image
from safetensors.numpy import load_file, save_file

from detector.bundle.files import open_bundle, write_manifest
from tests.conftest import NULL_WORKER, MakePicture, RunningWorker, StartWorker, StoreObject, settings_of
from tests.null_detector import NullDetector
from worker.broker.app import create_app
from worker.broker.dead_letters import DeadLetters
from worker.client import Client, NoVerdictError
from worker.contract.messages import CHECK_IMAGE, DeadLetterReason, RejectionEvent, RejectionReason, event_id
from worker.embedded.services import EmbeddedServices
from worker.embedded.startup import free_ports

SCHEMAS = Path(__file__).parents[3] / "deploy" / "schemas"
MAX_BYTES, MAX_PIXELS = 200_000, 1_000_000
GOOD = "good.jpg"


def _encoded(image: Image.Image, image_format: str) -> bytes:
    image.save(file := io.BytesIO(), image_format)
    return file.getvalue()


def _png(side: int, bits: int, colour_type: int, compressed: bytes) -> bytes:
    """Return a PNG around compressed pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, bits, colour_type, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", compressed) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _bomb() -> bytes:
    """Return a valid PNG of 400 million black pixels of one bit, in 49 kB: fewer than the limit of bytes."""
    return _png(20_000, 1, 0, zlib.compress(bytes(20_000 * (1 + 20_000 // 8)), 9))


def _jpeg_of_many_scans() -> bytes:
    """Return a progressive JPEG whose last scan is repeated beyond the limit."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * 50 + data[-2:]


# Uploads by the reason of their rejection; None where no object is stored.
UPLOADS: dict[str, bytes | None] = {
    "empty": b"",
    "not_an_image": b"A shopping list, whatever its name says.",
    "format_not_allowed": _encoded(Image.new("RGB", (64, 64)), "TIFF"),
    "too_many_pixels": _encoded(Image.new("1", (1001, 1000)), "PNG"),
    "too_small": _encoded(Image.new("RGB", (31, 64)), "PNG"),
    "too_much_metadata": _jpeg_of_many_scans(),
    "truncated": _encoded(Image.effect_noise((90, 90), 50), "JPEG")[:1500],
    "corrupt": _png(64, 8, 2, b"\x78\x9c" + b"\xff" * 500),
    "missing": None,
    "forbidden": b"secret",
    "bucket_not_allowed": None,
    "too_large": b"\xff" * (MAX_BYTES + 1),
    "unreadable": b"what only brotli reads",
    "changed": b"changed since",
    "digest_mismatch": b"other content",
    "bitmap": _encoded(Image.new("RGB", (64, 64)), "BMP"),
    "bomb": _bomb(),
}
# Further uploads of a reason that is in `UPLOADS` already.
NAMED: dict[str, RejectionReason] = {"bitmap": "format_not_allowed", "bomb": "too_many_pixels"}
FIELDS: dict[str, dict[str, Any]] = {
    "bucket_not_allowed": {"bucket": "someone-elses"},
    "changed": {"etag": '"00000000000000000000000000000000"'},
    "digest_mismatch": {"sha256": "0" * 64},
}


@pytest.fixture(scope="module")
def worker(worker_process: StartWorker) -> RunningWorker:
    """Provide this module's worker, with limits that small uploads exceed."""
    limits = {"DNF_MAX_BYTES": str(MAX_BYTES), "DNF_MAX_PIXELS": str(MAX_PIXELS)}
    return worker_process(limits, module=NULL_WORKER)


@pytest.fixture(scope="module", autouse=True)
def _uploads(
    services: EmbeddedServices, store_object: StoreObject, make_picture: MakePicture
) -> Iterator[None]:
    """Store the uploads; the store forbids everybody to read `rejected/forbidden`."""
    store_object(GOOD, make_picture(3))
    for name, data in UPLOADS.items():
        if data is not None:
            store_object(f"rejected/{name}", data)
    s3 = services.seaweedfs.client()
    s3.put_object(
        Bucket=services.bucket,
        Key="rejected/unreadable",
        Body=UPLOADS["unreadable"] or b"",
        ContentEncoding="br",
    )
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
    """`UPLOADS` has every reason of `RejectionReason`."""
    assert {NAMED.get(name, name) for name in UPLOADS} == set(get_args(RejectionReason))


@pytest.mark.parametrize("name", UPLOADS)
def test_an_upload_at_fault_is_rejected_with_its_reason(
    worker: RunningWorker, client: Client, services: EmbeddedServices, name: str
) -> None:
    """The event is valid by its schema, has reason and detail, and returns the metadata."""
    where = {"bucket": services.bucket, "key": f"rejected/{name}"}
    reason = NAMED.get(name, name)
    check_id = client.submit(**{**where, **FIELDS.get(name, {})}, metadata={"reason": reason})
    event = client.wait_for(check_id)[check_id]
    assert isinstance(event.envelope, RejectionEvent)
    data = event.envelope.data
    assert data.reason == reason, data.detail
    assert data.detail.endswith(".")
    assert data.metadata == {"reason": reason}
    assert client.thumbnail(event) is None
    schema = json.loads((SCHEMAS / "image-rejected-v1.json").read_text())
    Draft202012Validator(schema).validate(json.loads(event.raw))
    raw = json.loads(event.raw)
    # The attributes that CloudEvents 1.0 requires.
    assert (raw["specversion"], raw["type"], raw["source"]) == ("1.0", "image.rejected.v1", "dnf-moderation")
    assert raw["id"] == event_id(check_id, NullDetector().bundle.digest, "default")
    (line,) = worker.wait_for_event("image_rejected", check_id=check_id)
    assert line["reason"] == reason


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (([], {}), "one positional argument"),
        ((["not an object"], {}), "one positional argument"),
        (([["bucket", "key"]], {}), "one positional argument"),
        (([], {"bucket": "uploads", "key": "a"}), "one positional argument"),
        (([{"bucket": "uploads"}], {}), "key: Field required"),
        (([{"bucket": "uploads", "key": "a", "extra": 1}], {}), "extra: Extra inputs are not permitted"),
        (([{"bucket": "uploads", "key": "a", "metadata": {"a": "x" * 5000}}], {}), "metadata: Value error"),
        (([{"bucket": "uploads", "key": "a"}, 2], {"more": 3}), "one positional argument"),
    ],
)
def test_a_malformed_message_is_dead_lettered(
    worker: RunningWorker,
    client: Client,
    wait_until: Callable[..., None],
    arguments: tuple[list[Any], dict[str, Any]],
    problem: str,
) -> None:
    """The dead letter has the reason and the message; no event is published."""
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
    kept = json.loads(dead_letter.message)
    if dead_letter.form == "entry":
        assert json.loads(base64.b64decode(kept["body"]))[:2] == [args, kwargs]
    else:
        assert [kept] == args
    schema = json.loads((SCHEMAS / "dead-letter.json").read_text())
    Draft202012Validator(schema).validate(dead_letter.model_dump(mode="json"))
    assert client.position() == position
    worker.wait_for_event("check_dead_lettered", count=before + 1)
    dead_letters.close()
    app.close()


def test_a_check_under_an_unknown_policy_is_dead_lettered(
    worker: RunningWorker, client: Client, services: EmbeddedServices
) -> None:
    """A client that waits for it gets an error at once."""
    check_id = client.submit(services.bucket, GOOD, policy="stricter")
    with pytest.raises(NoVerdictError, match="unknown_policy") as failed:
        client.wait_for(check_id, timeout_seconds=60)
    assert failed.value.dead_letters[check_id].reason == "unknown_policy"
    assert failed.value.missing == frozenset()
    worker.wait_for_event("check_dead_lettered", check_id=check_id)


def test_the_same_worker_still_judges_a_good_picture(
    worker: RunningWorker, client: Client, services: EmbeddedServices
) -> None:
    """After all of the above it has not been restarted."""
    check_id = client.submit(services.bucket, GOOD)
    event = client.wait_for(check_id)[check_id]
    assert not isinstance(event.envelope, RejectionEvent)
    assert len(worker.wait_for_event("worker_ready")) == 1


def test_a_check_is_retried_and_dead_lettered_when_the_store_is_unreachable(
    worker_process: StartWorker,
    service_environment: dict[str, str],
    new_database: Callable[[], str],
) -> None:
    """It has no event, and is retried on its own queue as often as is set."""
    environment = {
        "DNF_REDIS_URL": new_database(),
        "DNF_S3_ENDPOINT_URL": f"http://127.0.0.1:{free_ports(1)[0]}",
        "DNF_MAX_RETRIES": "2",
    }
    with Client(settings_of({**service_environment, **environment})) as client:
        check_id = client.submit(client.settings.upload_bucket, GOOD, queue="image-checks.urgent")
        worker = worker_process(environment, module=NULL_WORKER, burst=True)
        with pytest.raises(NoVerdictError) as failed:
            client.wait_for(check_id, timeout_seconds=60)
        dead_letter = failed.value.dead_letters[check_id]
    assert (dead_letter.reason, dead_letter.attempts) == ("storage_unavailable", 3)
    assert json.loads(dead_letter.message)["check_id"] == check_id
    retried = worker.wait_for_event("check_retried", count=2, check_id=check_id)
    assert [line["retry"] for line in retried] == [1, 2]
    assert all("StorageUnavailableError" in line["error"] for line in retried)


def test_a_check_is_dead_lettered_when_the_keys_of_the_store_are_wrong(
    worker_process: StartWorker,
    service_environment: dict[str, str],
    new_database: Callable[[], str],
) -> None:
    """The upload is not rejected for the operator's mistake; the key is not logged."""
    environment = {
        "DNF_REDIS_URL": new_database(),
        "DNF_S3_SECRET_ACCESS_KEY": "not-the-right-one",
        "DNF_MAX_RETRIES": "0",
    }
    with Client(settings_of({**service_environment, **environment})) as client:
        check_id = client.submit(client.settings.upload_bucket, GOOD)
        worker = worker_process(environment, module=NULL_WORKER, burst=True)
        with pytest.raises(NoVerdictError) as failed:
            client.wait_for(check_id, timeout_seconds=60)
    assert failed.value.dead_letters[check_id].reason == "storage_unavailable"
    assert "SignatureDoesNotMatch" in failed.value.dead_letters[check_id].detail
    assert "not-the-right-one" not in worker.log.read_text()


def test_a_check_is_dead_lettered_when_the_score_is_not_a_number(
    worker_process: StartWorker,
    service_environment: dict[str, str],
    new_database: Callable[[], str],
    tiny_bundle: Path,
    tmp_path: Path,
) -> None:
    """Broken weights must not pass for *real*; the check is retried twice before."""
    broken = shutil.copytree(tiny_bundle, tmp_path / "broken")
    weights = load_file(broken / "classifier.safetensors")
    ruined = {name: np.full_like(w, np.nan) if w.dtype == np.float32 else w for name, w in weights.items()}
    save_file(ruined, broken / "classifier.safetensors")
    write_manifest(broken, open_bundle(tiny_bundle).manifest)
    environment = {"DNF_REDIS_URL": new_database(), "DNF_BUNDLE": str(broken)}
    with Client(settings_of({**service_environment, **environment})) as client:
        check_id = client.submit(client.settings.upload_bucket, GOOD)
        worker_process(environment, burst=True)
        with pytest.raises(NoVerdictError) as failed:
            client.wait_for(check_id, timeout_seconds=60)
    dead_letter = failed.value.dead_letters[check_id]
    assert (dead_letter.reason, dead_letter.attempts) == ("model_failed", 3)


def test_the_schema_of_dead_letters_lists_every_reason() -> None:
    """It has the same reasons as the code."""
    schema = json.loads((SCHEMAS / "dead-letter.json").read_text())
    assert schema["properties"]["reason"]["enum"] == list(get_args(DeadLetterReason))
