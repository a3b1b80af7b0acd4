"""What a store answers, and what becomes of the check: tried again, or rejected."""

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import redis

from tests.conftest import PATIENCE, MakePicture, StartWorker
from worker.client import Client
from worker.messages import ImageCheck
from worker.settings import Settings
from worker.storage import Storage, StorageRejected, StorageUnavailable

BODY = b"x" * 5000
DEADLINE_SECONDS = 4.0

Behaviour = Callable[[BaseHTTPRequestHandler], None]


class FaultyStore:
    """An S3 endpoint that behaves as told, one behaviour a request; the last one stays."""

    def __init__(self) -> None:
        self.behaviours: list[Behaviour] = []
        self.requests = 0
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                store.requests += 1
                behaviours = store.behaviours
                (behaviours.pop(0) if len(behaviours) > 1 else behaviours[0])(self)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def store() -> Iterator[FaultyStore]:
    """Provide a store with faults."""
    store = FaultyStore()
    threading.Thread(target=store.server.serve_forever, daemon=True).start()
    yield store
    store.server.shutdown()
    store.server.server_close()


def answer(status: int, code: str) -> Behaviour:
    """Return S3's answer with an error."""

    def behave(request: BaseHTTPRequestHandler) -> None:
        body = (
            f"<Error><Code>{code}</Code><Message>m</Message></Error>".encode() if code else b"<html>no</html>"
        )
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    return behave


def serve(data: bytes) -> Behaviour:
    """Return an answer with an object."""

    def behave(request: BaseHTTPRequestHandler) -> None:
        _begin(request, len(data))
        request.wfile.write(data)

    return behave


def _begin(request: BaseHTTPRequestHandler, length: int, **headers: str) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(length))
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()


def _reset(request: BaseHTTPRequestHandler) -> None:
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.connection.close()
    request.close_connection = True


def _reset_amid_body(request: BaseHTTPRequestHandler) -> None:
    _begin(request, len(BODY))
    request.wfile.write(BODY[:2000])
    _reset(request)


def _end_amid_body(request: BaseHTTPRequestHandler) -> None:
    _begin(request, len(BODY))
    request.wfile.write(BODY[:2000])
    request.close_connection = True


def _silent(request: BaseHTTPRequestHandler) -> None:
    time.sleep(3 * DEADLINE_SECONDS)
    request.close_connection = True


def _drip(request: BaseHTTPRequestHandler) -> None:
    _begin(request, len(BODY))
    request.close_connection = True
    for at in range(len(BODY)):
        try:
            request.wfile.write(BODY[at : at + 1])
        except OSError:
            return  # the reader gave up
        time.sleep(0.1)


def _corrupt(request: BaseHTTPRequestHandler) -> None:
    # The CRC32 of something else.
    _begin(request, len(BODY), x_amz_checksum_crc32="AAAAAA==")
    request.wfile.write(BODY)


def _storage(endpoint: str) -> Storage:
    settings: dict[str, Any] = {
        "s3_endpoint_url": endpoint,
        "s3_access_key_id": "key",
        "s3_secret_access_key": "secret",
        "s3_timeout_seconds": 1,
        "check_deadline_seconds": DEADLINE_SECONDS,
    }
    return Storage(Settings(**settings))


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
        _reset,
        _reset_amid_body,
        _end_amid_body,
        _silent,
        _drip,
        _corrupt,
    ],
    ids=lambda behaviour: behaviour.__name__ if behaviour.__name__ != "behave" else None,
)
def test_what_passes_is_tried_again_and_waited_for_within_the_deadline(
    store: FaultyStore, behaviour: Behaviour
) -> None:
    """Throttled, failed, cut, silent, trickling or damaged: no verdict on the upload, and no endless wait."""
    store.behaviours = [behaviour]
    began = time.monotonic()
    with pytest.raises(StorageUnavailable):
        _storage(store.url).fetch(ImageCheck(bucket="uploads", key="a.jpg"))
    assert time.monotonic() - began < DEADLINE_SECONDS * PATIENCE


@pytest.mark.parametrize("endpoint", ["http://no-such-host.invalid", "http://127.0.0.1:1"])
def test_a_store_that_is_not_there_is_tried_again(endpoint: str) -> None:
    """No name, and no listener."""
    with pytest.raises(StorageUnavailable):
        _storage(endpoint).fetch(ImageCheck(bucket="uploads", key="a.jpg"))


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
    with pytest.raises(StorageRejected) as rejected:
        _storage(store.url).fetch(ImageCheck(bucket="uploads", key="a.jpg", etag="e"))
    assert rejected.value.reason == reason
    assert store.requests == 1


def test_an_upload_is_whole_however_it_comes(store: FaultyStore) -> None:
    """In one piece after two faults of the store, or in many."""
    store.behaviours = [answer(503, "SlowDown"), serve(BODY)]
    assert _storage(store.url).fetch(ImageCheck(bucket="uploads", key="a.jpg")) == BODY

    def in_pieces(request: BaseHTTPRequestHandler) -> None:
        _begin(request, len(BODY))
        for at in range(0, len(BODY), 500):
            request.wfile.write(BODY[at : at + 500])
            request.wfile.flush()
            time.sleep(0.01)

    store.behaviours = [in_pieces]
    assert _storage(store.url).fetch(ImageCheck(bucket="uploads", key="a.jpg")) == BODY


def test_a_worker_waits_out_a_store_that_throttles_and_buries_what_it_never_gets(
    store: FaultyStore,
    worker_process: StartWorker,
    service_environment: dict[str, str],
    make_picture: MakePicture,
) -> None:
    """Eight refusals in all kinds and then the picture: a verdict, after waits below the visibility timeout.

    A store that goes on refusing: after eight more tries a dead letter with the reason, and no rejection.
    """
    refusals = [answer(503, "SlowDown"), answer(429, "TooManyRequests"), _reset, _reset_amid_body]
    store.behaviours = [*refusals, *refusals, serve(make_picture(3))]
    variables = {
        "DNF_S3_ENDPOINT_URL": store.url,
        "DNF_VISIBILITY_TIMEOUT_SECONDS": "8",
        "DNF_CHECK_DEADLINE_SECONDS": "7",
        "DNF_MAX_RETRIES": "8",
    }
    worker = worker_process(variables)
    with Client(Settings(redis_url=service_environment["DNF_REDIS_URL"])) as client:  # type: ignore[arg-type]
        bucket = service_environment["DNF_UPLOAD_BUCKET"]
        judged = client.submit(bucket, "a.jpg")
        event = client.wait_for(judged, timeout_seconds=60 * PATIENCE)[judged]
        assert event.envelope.type == "image.verdict.v1"
        postponed = worker.wait_for_event("check_postponed", check_id=judged, count=2)
        assert all(0 < line["seconds"] <= 2 for line in postponed)
        store.behaviours = [answer(503, "SlowDown")]
        buried = client.submit(bucket, "b.jpg")
        (letter,) = worker.wait_for_event("dead_letter_written", check_id=buried)
    assert letter["reason"] == "storage_unavailable"
    assert len(worker.wait_for_event("check_postponed", check_id=buried)) == 8
    with redis.Redis.from_url(service_environment["DNF_REDIS_URL"]) as broker:
        events = [json.loads(fields[b"event"]) for _, fields in broker.xrange("verdicts")]  # type: ignore[union-attr]
    assert buried not in {event["data"]["check_id"] for event in events}
