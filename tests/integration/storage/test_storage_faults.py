"""Replies of an object store that make a check be retried or an upload be rejected."""

import gzip
import hashlib
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse

from tests.conftest import NULL_WORKER, PATIENCE, MakePicture, StartWorker
from tests.faulty_store import (
    BODY,
    Behaviour,
    FaultyStore,
    announce,
    close_amid_body,
    close_amid_chunk,
    close_between_chunks,
    corrupt,
    endless_error,
    endless_headers,
    error,
    in_chunks,
    in_endless_chunks,
    in_pieces,
    reset,
    reset_amid_body,
    serve,
    silent,
    temporary_keys,
    trickle,
    trickle_error,
    trickle_header,
    trickle_in_chunks,
)
from worker.client import Client
from worker.contract.messages import ImageCheck
from worker.settings import Settings
from worker.storage import Storage, StorageRejectedError, StorageUnavailableError

KEYS: Any = {"s3_access_key_id": "key", "s3_secret_access_key": "secret"}
DEADLINE_SECONDS = 2.0 + PATIENCE


@pytest.fixture
def store() -> Iterator[FaultyStore]:
    """Provide an object store with faults."""
    with FaultyStore() as store:
        yield store


def _storage(endpoint: str, **changes: Any) -> Storage:
    settings: dict[str, Any] = {
        "s3_endpoint_url": endpoint,
        "s3_access_key_id": "key",
        "s3_secret_access_key": "secret",
        "s3_timeout_seconds": DEADLINE_SECONDS / 6,
        "check_deadline_seconds": DEADLINE_SECONDS,
        **changes,
    }
    return Storage(Settings(**settings).storage)


@pytest.mark.parametrize(
    "behaviour",
    [
        error(503, "SlowDown"),
        error(429, "TooManyRequests"),
        error(500, "InternalError"),
        error(502, ""),
        error(504, ""),
        error(403, "InvalidAccessKeyId"),
        error(403, "SignatureDoesNotMatch"),
        error(403, "RequestTimeTooSkewed"),
        reset,
        reset_amid_body,
        close_amid_body,
        silent,
        trickle,
        corrupt,
        close_between_chunks,
        close_amid_chunk,
        trickle_in_chunks,
    ],
    ids=lambda behaviour: behaviour.__name__ if behaviour.__name__ != "behave" else None,
)
def test_a_temporary_fault_raises_unavailable_within_the_deadline(
    store: FaultyStore, behaviour: Behaviour
) -> None:
    """The check will be retried: the upload is not at fault."""
    store.behaviours, storage = [behaviour], _storage(store.url)
    began = time.monotonic()
    with pytest.raises(StorageUnavailableError):
        storage.fetch(ImageCheck(bucket="uploads", key="a.jpg"))
    assert time.monotonic() - began < DEADLINE_SECONDS


@pytest.mark.parametrize(
    "endpoint", ["http://user:hidden@no-such-host.invalid", "http://user:hidden@127.0.0.1:1"]
)
def test_an_unreachable_store_raises_unavailable(endpoint: str) -> None:
    """Without a host or a listener; the error, which dead letters quote, hides the password."""
    with pytest.raises(StorageUnavailableError) as unavailable:
        _storage(endpoint).fetch(ImageCheck(bucket="uploads", key="a.jpg"))
    assert "user:********@" in str(unavailable.value)


NAMES_ALL: dict[str, Any] = {"bucket": "uploads", "key": "a.jpg", "version_id": "v", "etag": "e"}


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (404, "NoSuchKey", "missing"),
        (404, "NoSuchVersion", "missing"),
        (400, "InvalidArgument", "missing"),
        (405, "MethodNotAllowed", "missing"),
        (400, "KeyTooLongError", "missing"),
        (403, "AccessDenied", "forbidden"),
        (403, "InvalidObjectState", "unreadable"),
        (412, "PreconditionFailed", "changed"),
    ],
)
def test_what_the_store_says_of_the_object_is_final(
    store: FaultyStore, status: int, code: str, reason: str
) -> None:
    """One request, and a rejection with a reason and a sentence."""
    store.behaviours = [error(status, code)]
    with pytest.raises(StorageRejectedError) as rejected:
        _storage(store.url).fetch(ImageCheck(**NAMES_ALL))
    assert rejected.value.reason == reason
    assert str(rejected.value).endswith(".")
    assert store.requests == 1


def test_an_object_that_is_encrypted_with_its_owners_key_is_rejected(store: FaultyStore) -> None:
    """S3 has no code of its own for it."""
    words = "The object was stored using a form of Server Side Encryption."
    store.behaviours = [error(400, "InvalidRequest", words)]
    with pytest.raises(StorageRejectedError, match="SSE-C") as rejected:
        _storage(store.url).fetch(ImageCheck(bucket="uploads", key="a.jpg"))
    assert rejected.value.reason == "unreadable"


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (403, ""),
        (404, ""),
        (404, "NoSuchBucket"),
        (403, "SecondLevelDomainForbidden"),
        (403, "AccountProblem"),
        (403, "AllAccessDisabled"),
        (400, "KMS.DisabledException"),
        (400, "InvalidRequest"),
        # Said of a version and of an ETag that the check does not name.
        (400, "InvalidArgument"),
        (405, "MethodNotAllowed"),
        (412, "PreconditionFailed"),
    ],
)
def test_whatever_else_is_refused_waits_for_the_operator(
    store: FaultyStore, status: int, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A proxy's words, or the store's on anything but the object: retried, and named in the log."""
    store.behaviours = [error(status, code)]
    with pytest.raises(StorageUnavailableError):
        _storage(store.url).fetch(ImageCheck(bucket="uploads", key="a.jpg"))
    logged = "".join(capsys.readouterr())
    assert "storage_refused" in logged
    assert code in logged
    assert str(status) in logged


def test_credentials_that_are_refused_are_no_verdict_on_the_upload(
    store: FaultyStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A role that is not ready yet is refused with AccessDenied too, by another service."""
    token = tmp_path / "token"
    token.write_text("a token of the cluster")
    store.behaviours = [error(403, "AccessDenied")]
    variables = {
        "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/worker",
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(token),
        "AWS_ENDPOINT_URL_STS": store.url,
        "AWS_REGION": "us-east-1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StorageUnavailableError, match="AssumeRoleWithWebIdentity"):
        _storage(store.url, s3_access_key_id=None, s3_secret_access_key=None).fetch(
            ImageCheck(bucket="uploads", key="a.jpg")
        )
    assert "storage_refused" in "".join(capsys.readouterr())


def test_temporary_credentials_are_renewed_before_they_expire(
    store: FaultyStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A role's keys live for minutes or hours, a worker for weeks: each request has keys in force."""
    token = tmp_path / "token"
    token.write_text("a token of the cluster")
    expired_soon = datetime.now(UTC) + timedelta(minutes=1)
    store.behaviours = [
        temporary_keys("first", expired_soon),
        serve(BODY),
        temporary_keys("second", expired_soon + timedelta(hours=1)),
        serve(BODY),
    ]
    variables = {
        "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/worker",
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(token),
        "AWS_ENDPOINT_URL_STS": store.url,
        "AWS_REGION": "us-east-1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    storage = _storage(store.url, s3_access_key_id=None, s3_secret_access_key=None)
    for key in ("first", "second", "second"):
        assert storage.fetch(ImageCheck(bucket="uploads", key="a.jpg")).data == BODY
        assert f"Credential={key}/" in store.get_headers["Authorization"]
        assert store.get_headers["X-Amz-Security-Token"] == f"token of {key}"


def test_a_connection_serves_many_fetches(store: FaultyStore) -> None:
    """A handshake for each upload would cost more than the upload."""
    store.behaviours, storage = [serve(BODY)], _storage(store.url)
    for number in range(5):
        storage.fetch(ImageCheck(bucket="uploads", key=f"{number}.jpg"))
    assert (store.requests, store.connections) == (5, 1)


@pytest.mark.parametrize(
    "behaviour",
    [
        error(503, "SlowDown"),
        reset,
        reset_amid_body,
        close_amid_body,
        close_amid_chunk,
        corrupt,
        silent,
        endless_headers,
    ],
    ids=lambda behaviour: behaviour.__name__ if behaviour.__name__ != "behave" else None,
)
def test_a_fault_of_a_kept_connection_raises_unavailable_and_the_next_fetch_succeeds(
    store: FaultyStore, behaviour: Behaviour
) -> None:
    storage, check = _storage(store.url), ImageCheck(bucket="uploads", key="a.jpg")
    store.behaviours = [serve(BODY)]
    storage.fetch(check)
    store.behaviours = [behaviour]
    with pytest.raises(StorageUnavailableError):
        storage.fetch(check)
    store.behaviours = [serve(BODY)]
    assert storage.fetch(check).data == BODY


@pytest.mark.parametrize(
    "behaviour", [trickle_header, trickle_error], ids=lambda behaviour: behaviour.__name__
)
def test_the_whole_exchange_has_one_deadline(store: FaultyStore, behaviour: Behaviour) -> None:
    """No single wait is long: headers and errors that trickle hold a thread no longer than an object does."""
    store.behaviours, storage = [behaviour], _storage(store.url)
    began = time.monotonic()
    with pytest.raises(StorageUnavailableError):
        storage.fetch(ImageCheck(bucket="uploads", key="a.jpg"))
    # A fetch may take half of a check's time, and botocore waits up to a second before its second attempt.
    assert time.monotonic() - began < DEADLINE_SECONDS / 2 + PATIENCE


@pytest.mark.parametrize(
    "behaviour", [endless_error, endless_headers], ids=lambda behaviour: behaviour.__name__
)
def test_the_whole_exchange_has_one_size(store: FaultyStore, behaviour: Behaviour) -> None:
    """No more is read than headers and errors have; what was sent includes what both systems hold back."""
    store.behaviours = [behaviour]
    with pytest.raises(StorageUnavailableError):
        _storage(store.url).fetch(ImageCheck(bucket="uploads", key="a.jpg"))
    assert store.sent < 24 << 20


@pytest.mark.parametrize(
    "behaviour", [serve(BODY), in_pieces, in_chunks], ids=["at once", "pieces", "chunks"]
)
def test_an_upload_is_read_whole_however_it_is_sent(store: FaultyStore, behaviour: Behaviour) -> None:
    """After a retry; at once, in pieces, or in chunks of unknown total length."""
    store.behaviours = [error(503, "SlowDown"), behaviour]
    assert _storage(store.url).fetch(ImageCheck(bucket="uploads", key="a.jpg")).data == BODY


@pytest.mark.parametrize("behaviour", [serve(BODY), in_chunks, in_endless_chunks])
def test_an_upload_larger_than_the_limit_is_rejected(store: FaultyStore, behaviour: Behaviour) -> None:
    """With a stated length or without one, and even if it never ends; one of the limit's size is read."""
    store.behaviours = [behaviour]
    with pytest.raises(StorageRejectedError) as rejected:
        _storage(store.url, max_bytes=len(BODY) - 1).fetch(ImageCheck(bucket="uploads", key="a.jpg"))
    assert rejected.value.reason == "too_large"
    store.behaviours = [in_chunks]
    assert (
        _storage(store.url, max_bytes=len(BODY)).fetch(ImageCheck(bucket="uploads", key="a.jpg")).data == BODY
    )


def test_an_upload_with_a_stated_length_over_the_limit_is_not_read(store: FaultyStore) -> None:
    """Nothing follows the length here, which for a shorter upload is a fault of the store."""
    storage, check = _storage(store.url, max_bytes=5000), ImageCheck(bucket="uploads", key="a.jpg")
    store.behaviours = [announce(5001)]
    with pytest.raises(StorageRejectedError) as rejected:
        storage.fetch(check)
    assert rejected.value.reason == "too_large"
    store.behaviours = [announce(5000)]
    with pytest.raises(StorageUnavailableError):
        storage.fetch(check)


def test_a_worker_retries_a_throttling_store_and_dead_letters_after_the_last_retry(
    store: FaultyStore, worker_process: StartWorker, client: Client, make_picture: MakePicture
) -> None:
    """Eight different faults and then the picture: a verdict, after waits below the visibility timeout.

    If the faults do not end there is a dead letter after four retries, and no rejection.
    """
    faults = [error(503, "SlowDown"), error(429, "TooManyRequests"), reset, reset_amid_body]
    store.behaviours = [*faults, *faults, serve(make_picture(3))]
    variables = {
        "DNF_S3_ENDPOINT_URL": store.url,
        "DNF_VISIBILITY_TIMEOUT_SECONDS": "5",
        "DNF_CHECK_DEADLINE_SECONDS": "4",
        "DNF_MAX_RETRIES": "4",
    }
    worker = worker_process(variables, module=NULL_WORKER)
    bucket = client.settings.upload_bucket
    judged = client.submit(bucket, "a.jpg")
    event = client.wait_for(judged, timeout_seconds=60 * PATIENCE)[judged]
    assert event.envelope.type == "image.verdict.v1"
    retried = worker.wait_for_event("check_retried", check_id=judged, count=2)
    assert all(0 < line["seconds"] <= 5 / 4 for line in retried)
    store.behaviours = [error(503, "SlowDown")]
    failed = client.submit(bucket, "b.jpg")
    (dead_letter,) = worker.wait_for_event("check_dead_lettered", check_id=failed)
    assert dead_letter["reason"] == "storage_unavailable"
    assert len(worker.wait_for_event("check_retried", check_id=failed)) == 4
    assert failed not in {event.check_id for event in client.events(follow=False)}


PICTURE = Path(__file__).parents[2] / "data" / "pictures" / "jpeg_stored_with_content_encoding_gzip.jpg.gz"


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZIP, aws-chunked"])
def test_an_object_with_a_content_encoding_is_unpacked(store: FaultyStore, encoding: str) -> None:
    """Its digest and size are those of what is stored."""
    stored = PICTURE.read_bytes()
    store.behaviours = [serve(stored, Content_Encoding=encoding)]
    upload = _storage(store.url).fetch(
        ImageCheck(bucket="uploads", key="a.jpg", sha256=hashlib.sha256(stored).hexdigest())
    )
    assert upload.data == gzip.decompress(stored)
    assert upload.size == len(stored)


@pytest.mark.parametrize("encoding", ["gzip", "aws-chunked", "utf-8", "br", "identity"])
def test_an_object_that_merely_claims_an_encoding_is_left_as_it_is(store: FaultyStore, encoding: str) -> None:
    """Uploaders set the header without doing what it says."""
    picture = gzip.decompress(PICTURE.read_bytes())
    store.behaviours = [serve(picture, Content_Encoding=encoding)]
    assert _storage(store.url).fetch(ImageCheck(bucket="uploads", key="a.jpg")).data == picture


@pytest.mark.parametrize(
    ("data", "encoding", "reason"),
    [
        (gzip.compress(bytes(1 << 20)), "gzip", "too_large"),
        (b"\x1f\x8b" + b"x" * 100, "gzip", "unreadable"),
        (b"what only brotli reads", "br", "unreadable"),
    ],
)
def test_an_encoding_that_cannot_be_undone_within_the_limits_is_named(
    store: FaultyStore, data: bytes, encoding: str, reason: str
) -> None:
    """A kilobyte may unpack to a megabyte, here beyond the limit."""
    store.behaviours = [serve(data, Content_Encoding=encoding)]
    with pytest.raises(StorageRejectedError) as rejected:
        _storage(store.url, max_bytes=100_000).fetch(ImageCheck(bucket="uploads", key="a.jpg"))
    assert rejected.value.reason == reason


def test_a_store_on_this_machine_is_not_asked_through_a_proxy(
    store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy of the environment is for what is outside."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    store.behaviours = [serve(BODY)]
    assert _storage(store.url).fetch(ImageCheck(bucket="uploads", key="a.jpg")).data == BODY


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({}, "https://s3.example/uploads/a.jpg"),
        ({"s3_addressing": "path"}, "https://s3.example/uploads/a.jpg"),
        ({"s3_addressing": "virtual"}, "https://uploads.s3.example/a.jpg"),
        ({"s3_endpoint_url": None}, "https://uploads.s3.amazonaws.com/a.jpg"),
    ],
)
def test_a_bucket_is_addressed_as_the_settings_say(settings: dict[str, Any], url: str) -> None:
    """As a host below the endpoint's, or in the path."""
    storage = Storage(Settings(**{"s3_endpoint_url": "https://s3.example", **KEYS, **settings}).storage)
    requested: list[Any] = []

    def unavailable(request: Any, **_: Any) -> AWSResponse:
        requested.append(request)
        return AWSResponse(request.url, 403, {}, SimpleNamespace(stream=lambda *_, **__: iter([b""])))

    # In place of the network.
    storage.client.meta.events.register("before-send.s3", unavailable)
    with pytest.raises(StorageUnavailableError):
        storage.fetch(ImageCheck(bucket="uploads", key="a.jpg"))
    (request,) = requested
    assert request.url == url
    assert "/us-east-1/s3/aws4_request" in str(request.headers["Authorization"])


def test_other_stores_get_no_checksum_after_the_body(store: FaultyStore, tmp_path: Path) -> None:
    """Many do not know `aws-chunked`, and would store it with the picture."""
    picture = tmp_path / "a.jpg"
    picture.write_bytes(BODY)
    _storage(store.url).upload(picture)
    assert store.put_headers.get("Content-Encoding") is None
    assert store.put_headers["Content-Length"] == str(len(BODY))
