"""What a store answers, and what becomes of the check: tried again, or rejected."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from tests.conftest import PATIENCE, MakePicture, StartWorker
from tests.faulty_store import (
    BODY,
    Behaviour,
    FaultyStore,
    announce,
    answer,
    corrupt,
    drip,
    drip_in_chunks,
    end_amid_body,
    end_amid_chunk,
    end_between_chunks,
    in_chunks,
    in_chunks_without_end,
    in_pieces,
    reset,
    reset_amid_body,
    serve,
    silent,
)
from worker.client import Client
from worker.contract.messages import ImageCheck
from worker.settings import Settings
from worker.storage import Storage, StorageRejectedError, StorageUnavailableError

DEADLINE_SECONDS = 4.0


@pytest.fixture
def store() -> Iterator[FaultyStore]:
    """Provide a store with faults."""
    with FaultyStore() as store:
        yield store


def _storage(endpoint: str, **changes: Any) -> Storage:
    settings: dict[str, Any] = {
        "s3_endpoint_url": endpoint,
        "s3_access_key_id": "key",
        "s3_secret_access_key": "secret",
        "s3_timeout_seconds": 1,
        "check_deadline_seconds": DEADLINE_SECONDS,
        **changes,
    }
    return Storage(Settings(**settings).storage)


@pytest.mark.parametrize(
    "behaviour",
    [
        answer(503, "SlowDown"),
        answer(429, "TooManyRequests"),
        answer(500, "InternalError"),
        answer(502, ""),
        answer(504, ""),
        answer(403, "InvalidAccessKeyId"),
        answer(403, "SignatureDoesNotMatch"),
        answer(403, "RequestTimeTooSkewed"),
        reset,
        reset_amid_body,
        end_amid_body,
        silent,
        drip,
        corrupt,
        end_between_chunks,
        end_amid_chunk,
        drip_in_chunks,
    ],
    ids=lambda behaviour: behaviour.__name__ if behaviour.__name__ != "behave" else None,
)
def test_what_passes_is_tried_again_and_waited_for_within_the_deadline(
    store: FaultyStore, behaviour: Behaviour
) -> None:
    """Throttled, failed, cut, silent, trickling or damaged: no verdict on the upload, and no endless wait."""
    store.behaviours = [behaviour]
    began = time.monotonic()
    with pytest.raises(StorageUnavailableError):
        _storage(store.url).fetch(ImageCheck(bucket="uploads", key="a.jpg"))
    assert time.monotonic() - began < DEADLINE_SECONDS * PATIENCE


@pytest.mark.parametrize(
    "endpoint", ["http://user:hidden@no-such-host.invalid", "http://user:hidden@127.0.0.1:1"]
)
def test_a_store_that_is_not_there_is_tried_again(endpoint: str) -> None:
    """No name, and no listener; what is said of it stands in dead letters too, without a password."""
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
def test_what_will_not_pass_is_rejected_after_one_request(
    store: FaultyStore, status: int, code: str, reason: str
) -> None:
    """Also without the body that S3 would send."""
    store.behaviours = [answer(status, code)]
    with pytest.raises(StorageRejectedError) as rejected:
        _storage(store.url).fetch(ImageCheck(bucket="uploads", key="a.jpg", etag="e"))
    assert rejected.value.reason == reason
    assert store.requests == 1


@pytest.mark.parametrize(
    "behaviour", [serve(BODY), in_pieces, in_chunks], ids=["at once", "pieces", "chunks"]
)
def test_an_upload_is_whole_however_it_comes(store: FaultyStore, behaviour: Behaviour) -> None:
    """After a fault of the store, at once, in pieces, or in chunks that do not say how long it is."""
    store.behaviours = [answer(503, "SlowDown"), behaviour]
    assert _storage(store.url).fetch(ImageCheck(bucket="uploads", key="a.jpg")).data == BODY


@pytest.mark.parametrize("behaviour", [serve(BODY), in_chunks, in_chunks_without_end])
def test_an_upload_beyond_the_limit_is_rejected_whether_its_length_is_said_or_not(
    store: FaultyStore, behaviour: Behaviour
) -> None:
    """No more than the limit is read of chunks, not even of those that have no end; at the limit all is."""
    store.behaviours = [behaviour]
    with pytest.raises(StorageRejectedError) as rejected:
        _storage(store.url, max_bytes=len(BODY) - 1).fetch(ImageCheck(bucket="uploads", key="a.jpg"))
    assert rejected.value.reason == "too_large"
    store.behaviours = [in_chunks]
    assert (
        _storage(store.url, max_bytes=len(BODY)).fetch(ImageCheck(bucket="uploads", key="a.jpg")).data == BODY
    )


def test_of_an_upload_that_says_it_is_too_long_nothing_is_read(store: FaultyStore) -> None:
    """Nothing comes after its length here, which for a shorter one is a fault of the store."""
    storage, check = _storage(store.url, max_bytes=5000), ImageCheck(bucket="uploads", key="a.jpg")
    store.behaviours = [announce(5001)]
    with pytest.raises(StorageRejectedError) as rejected:
        storage.fetch(check)
    assert rejected.value.reason == "too_large"
    store.behaviours = [announce(5000)]
    with pytest.raises(StorageUnavailableError):
        storage.fetch(check)


def test_a_worker_waits_out_a_store_that_throttles_and_buries_what_it_never_gets(
    store: FaultyStore,
    worker_process: StartWorker,
    service_environment: dict[str, str],
    make_picture: MakePicture,
) -> None:
    """Eight refusals in all kinds and then the picture: a verdict, after waits below the visibility timeout.

    A store that goes on refusing: after eight more tries a dead letter with the reason, and no rejection.
    """
    refusals = [answer(503, "SlowDown"), answer(429, "TooManyRequests"), reset, reset_amid_body]
    store.behaviours = [*refusals, *refusals, serve(make_picture(3))]
    variables = {
        "DNF_S3_ENDPOINT_URL": store.url,
        "DNF_VISIBILITY_TIMEOUT_SECONDS": "5",
        "DNF_CHECK_DEADLINE_SECONDS": "4",
        "DNF_MAX_RETRIES": "8",
    }
    worker = worker_process(variables)
    with Client(Settings(redis_url=service_environment["DNF_REDIS_URL"])) as client:  # type: ignore[arg-type]
        bucket = service_environment["DNF_UPLOAD_BUCKET"]
        judged = client.submit(bucket, "a.jpg")
        event = client.wait_for(judged, timeout_seconds=60 * PATIENCE)[judged]
        assert event.envelope.type == "image.verdict.v1"
        postponed = worker.wait_for_event("check_retried", check_id=judged, count=2)
        assert all(0 < line["seconds"] <= 5 / 4 for line in postponed)
        store.behaviours = [answer(503, "SlowDown")]
        buried = client.submit(bucket, "b.jpg")
        (dead_letter,) = worker.wait_for_event("check_dead_lettered", check_id=buried)
    assert dead_letter["reason"] == "storage_unavailable"
    assert len(worker.wait_for_event("check_retried", check_id=buried)) == 8
    with redis.Redis.from_url(service_environment["DNF_REDIS_URL"]) as broker:
        events = [json.loads(fields[b"event"]) for _, fields in broker.xrange("verdicts")]  # type: ignore[union-attr]
    assert buried not in {event["data"]["check_id"] for event in events}
