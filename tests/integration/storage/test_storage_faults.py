"""Replies of an object store that make a check be retried or an upload be rejected."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

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
    error,
    in_chunks,
    in_endless_chunks,
    in_pieces,
    reset,
    reset_amid_body,
    serve,
    silent,
    trickle,
    trickle_in_chunks,
)
from worker.client import Client
from worker.contract.messages import ImageCheck
from worker.settings import Settings
from worker.storage import Storage, StorageRejectedError, StorageUnavailableError

DEADLINE_SECONDS = 3.0 * PATIENCE


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
    store.behaviours = [behaviour]
    began = time.monotonic()
    with pytest.raises(StorageUnavailableError):
        _storage(store.url).fetch(ImageCheck(bucket="uploads", key="a.jpg"))
    assert time.monotonic() - began < DEADLINE_SECONDS


@pytest.mark.parametrize(
    "endpoint", ["http://user:hidden@no-such-host.invalid", "http://user:hidden@127.0.0.1:1"]
)
def test_an_unreachable_store_raises_unavailable(endpoint: str) -> None:
    """Without a host or a listener; the error, which dead letters quote, hides the password."""
    with pytest.raises(StorageUnavailableError) as unavailable:
        _storage(endpoint).fetch(ImageCheck(bucket="uploads", key="a.jpg"))
    assert "user:********@" in str(unavailable.value)


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (404, "NoSuchKey", "missing"),
        (404, "NoSuchBucket", "missing"),
        (404, "", "missing"),
        (400, "InvalidArgument", "missing"),
        (403, "AccessDenied", "forbidden"),
        (403, "InvalidObjectState", "forbidden"),
        (403, "", "forbidden"),
        (412, "PreconditionFailed", "changed"),
    ],
)
def test_a_permanent_fault_rejects_the_upload_after_one_request(
    store: FaultyStore, status: int, code: str, reason: str
) -> None:
    """With S3's error body or without one."""
    store.behaviours = [error(status, code)]
    with pytest.raises(StorageRejectedError) as rejected:
        _storage(store.url).fetch(ImageCheck(bucket="uploads", key="a.jpg", etag="e"))
    assert rejected.value.reason == reason
    assert store.requests == 1


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
