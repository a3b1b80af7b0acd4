"""Checks over HTTP as they are submitted: once for each id, within limits, when the broker has them."""

import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
import redis

from tests.conftest import MakePicture
from tests.integration.api.conftest import CallerWith
from tests.served_page import Caller, bearer, multipart, served, token
from worker.broker import keys
from worker.contract.envelope import decode
from worker.contract.messages import ImageCheck
from worker.database.database import Database
from worker.embedded.services import EmbeddedServices
from worker.settings import Settings

QUEUE = "image-checks"


@pytest.fixture(autouse=True)
def _empty_queue(module_broker: redis.Redis) -> Iterator[None]:
    yield
    module_broker.delete(QUEUE, "image-checks.bulk")


def enqueued(broker: redis.Redis, queue: str = QUEUE) -> list[ImageCheck]:
    """Return the checks that wait in a queue, oldest first."""
    found = []
    for entry in reversed(broker.lrange(queue, 0, -1)):  # type: ignore[arg-type] # the blocking client
        payload = decode(entry, queue, tag="t", server_time=0, longest_wait_seconds=1)
        ((text,), _, _) = json.loads(base64.b64decode(payload["body"]))
        found.append(ImageCheck.model_validate_json(text))
    return found


def check(**fields: object) -> dict[str, object]:
    """Return a check's JSON."""
    return {"check_id": str(uuid4()), "bucket": "test-uploads", "key": "a.jpg", **fields}


def test_a_check_is_on_the_queue_when_the_answer_comes(caller: Caller, module_broker: redis.Redis) -> None:
    """202 with its id and place; the fields are those of the contract."""
    body = check(metadata={"user": "u-17"}, sha256="0" * 64, policy="strict")
    reply = caller.post("/v1/checks", body)
    assert (reply.status, reply.json) == (202, {"check_id": body["check_id"]})
    assert reply.headers["location"] == f"/v1/checks/{body['check_id']}"
    (found,) = enqueued(module_broker)
    assert found.model_dump(mode="json", include=set(body)) == body
    assert caller.get(reply.headers["location"]).json["state"] == "queued"


def test_a_check_goes_to_the_queue_that_it_names(caller: Caller, module_broker: redis.Redis) -> None:
    """An unknown one is refused."""
    assert caller.post("/v1/checks", check(queue="image-checks.bulk")).status == 202
    assert len(enqueued(module_broker, "image-checks.bulk")) == 1
    assert caller.post("/v1/checks", check(queue="celery")).status == 422


@pytest.mark.parametrize("how", ["check_id", "Idempotency-Key", "both"])
def test_a_repeated_request_is_one_check_and_another_body_is_refused(
    caller: Caller, module_broker: redis.Redis, how: str
) -> None:
    """By the check's own id, by the header, or by both; also for sixteen at once."""
    body = check()
    headers = {} if how == "check_id" else {"Idempotency-Key": str(uuid4())}
    if how == "Idempotency-Key":
        del body["check_id"]
    with ThreadPoolExecutor(16) as threads:
        replies = list(threads.map(lambda _: caller.post("/v1/checks", body, headers=headers), range(16)))
    assert {reply.status for reply in replies} == {202}
    (check_id,) = {reply.json["check_id"] for reply in replies}
    assert [found.check_id for found in enqueued(module_broker)] == [check_id]
    refused = caller.post("/v1/checks", {**body, "key": "b.jpg"}, headers=headers)
    assert (refused.status, refused.reason) == (409, "submitted_otherwise")
    if how == "both":
        refused = caller.post("/v1/checks", {**body, "check_id": str(uuid4())}, headers=headers)
        assert refused.reason == "submitted_otherwise"
    assert len(enqueued(module_broker)) == 1


def test_an_idempotency_key_belongs_to_its_caller(
    caller_with: CallerWith, module_broker: redis.Redis
) -> None:
    """Two platforms that count from one do not meet."""
    body = {"bucket": "test-uploads", "key": "a.jpg"}
    for own in (caller_with("checks:write"), caller_with("checks:write")):
        assert own.post("/v1/checks", body, headers={"Idempotency-Key": "1"}).status == 202
    assert len(enqueued(module_broker)) == 2


def test_another_body_is_refused_after_a_restart_of_the_api_too(
    caller: Caller, api_settings: Settings, module_database: Database, module_broker: redis.Redis
) -> None:
    """What was submitted is known to the broker, not to the process."""
    body = check()
    assert caller.post("/v1/checks", body).status == 202
    with served(api_settings, module_database) as other_port:
        other = Caller(other_port, bearer(token(module_database)))
        assert other.post("/v1/checks", body).status == 202
        assert other.post("/v1/checks", {**body, "policy": "other"}).status == 409
    assert len(enqueued(module_broker)) == 1


def test_a_check_that_the_broker_lost_is_enqueued_again_when_it_is_submitted_again(
    caller: Caller, module_broker: redis.Redis, api_settings: Settings
) -> None:
    """Not at once, since a worker may have it, and not when it has its event."""
    body = check()
    caller.post("/v1/checks", body)
    module_broker.delete(QUEUE)  # as a power failure may
    assert caller.post("/v1/checks", body).status == 202
    assert enqueued(module_broker) == []
    record = keys.submitted(str(body["check_id"]))
    digest, _, at = module_broker.get(record).decode().partition(":")  # type: ignore[union-attr] # blocking
    module_broker.set(record, f"{digest}:{int(at) - api_settings.visibility_timeout_seconds}")
    assert caller.post("/v1/checks", body).status == 202
    assert len(enqueued(module_broker)) == 1
    module_broker.set(record, f"{digest}:{int(at) - api_settings.visibility_timeout_seconds}")
    module_broker.set(keys.published("verdicts", str(body["check_id"])), "an event")
    module_broker.delete(QUEUE)
    assert caller.post("/v1/checks", body).status == 202
    assert enqueued(module_broker) == []


def test_a_batch_is_enqueued_whole_or_not_at_all(caller: Caller, module_broker: redis.Redis) -> None:
    """Up to 500 checks; a refused one is named by its place."""
    checks = [check(key=f"{number}.jpg") for number in range(500)]
    reply = caller.post("/v1/checks/batch", {"checks": checks})
    assert reply.status == 202
    assert [each["check_id"] for each in reply.json["checks"]] == [each["check_id"] for each in checks]
    assert [found.key for found in enqueued(module_broker)] == [each["key"] for each in checks]
    assert caller.post("/v1/checks/batch", {"checks": checks}).status == 202
    other = [check(), {**checks[7], "key": "other.jpg"}]
    refused = caller.post("/v1/checks/batch", {"checks": other})
    assert (refused.reason, refused.json["index"]) == ("submitted_otherwise", 1)
    for wrong in ([], [*checks, check()], [checks[0], checks[0]], [check(key="")], [check(bucket="other")]):
        assert caller.post("/v1/checks/batch", {"checks": wrong}).status == 422
    assert len(enqueued(module_broker)) == 500


def test_a_full_queue_is_told_with_the_time_of_the_next_attempt(
    caller: Caller, module_broker: redis.Redis
) -> None:
    """Nothing is enqueued; a repeated request for a check that waits is still one check."""
    body = check()
    assert caller.post("/v1/checks", body).status == 202
    module_broker.lpush(QUEUE, *[b"x"] * 1999)
    full = caller.post("/v1/checks", check())
    assert (full.status, full.reason) == (429, "queue_full")
    assert int(full.headers["retry-after"]) > 0
    assert caller.post("/v1/checks", body).status == 202
    assert module_broker.llen(QUEUE) == 2000


def test_a_broker_that_is_away_is_no_acceptance(
    api_settings: Settings, module_database: Database, new_database: object
) -> None:
    """503 in seconds, as a problem."""
    del new_database
    away = api_settings.model_copy(
        update={"redis_url": type(api_settings.redis_url)("redis://127.0.0.1:9/0")}
    )
    with served(away, module_database) as port:
        caller = Caller(port, bearer(token(module_database)))
        with ThreadPoolExecutor(2) as threads:
            replies = [threads.submit(caller.post, "/v1/checks", check())]
            replies.append(threads.submit(caller.get, "/v1/checks/a"))
            for reply in replies:
                assert (reply.result().status, reply.result().reason) == (503, "broker_unavailable")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"bucket": "test-uploads"}, "key"),
        ({"bucket": "test-uploads", "key": "a", "colour": {}}, "colour"),
        ({"bucket": "test-uploads", "key": "a", "metadata": {"a": "b" * 5000}}, "metadata"),
        ({"bucket": "test-uploads", "key": "a", "check_id": "a b"}, "check_id"),
        ([], ""),
    ],
)
def test_a_malformed_check_is_refused_with_its_field(caller: Caller, body: object, field: str) -> None:
    """What a worker would dead-letter is not enqueued."""
    reply = caller.post("/v1/checks", body)
    assert (reply.status, reply.reason) == (422, "invalid_request")
    assert reply.json["faults"][0]["field"] == field


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"bucket": "private"}, "bucket_not_allowed"),
        ({"key": "../other/a.jpg"}, "bucket_not_allowed"),
    ],
)
def test_an_object_that_workers_may_not_read_is_refused(
    caller: Caller, fields: dict[str, object], reason: str
) -> None:
    """The allow-list is the workers' own."""
    assert caller.post("/v1/checks", check(**fields)).reason == reason


@pytest.mark.parametrize(
    ("raw", "status", "reason"),
    [
        (b"{", 400, "malformed"),
        (b'{"metadata":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "malformed"),
        (b'{"key": "a", "bucket": NaN}', 400, "malformed"),
        (b'{"key": "' + b"a" * (4 << 20) + b'"}', 413, "too_large"),
        (b"", 400, "malformed"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/checks", "/v1/checks/batch", "/v1/intake/s3"])
def test_a_body_is_bounded_before_anything_reads_it(
    caller: Caller, path: str, raw: bytes, status: int, reason: str
) -> None:
    """In depth and bytes, at every endpoint; none of them is an internal error."""
    reply = caller.post(path, raw=raw, headers={"Content-Type": "application/json"})
    if not raw and path != "/v1/checks":
        status, reason = 422, "invalid_request"
    assert (reply.status, reply.reason) == (status, reason)


def test_a_body_without_a_stated_length_is_bounded_too(caller: Caller) -> None:
    """A chunked one is read up to the limit."""
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    raw = b"".join([chunk] * 5) + b"0\r\n\r\n"
    reply = caller.post(
        "/v1/checks",
        raw=raw,
        headers={"Content-Type": "application/json", "Transfer-Encoding": "chunked"},
    )
    assert reply.status == 413


def test_a_picture_that_comes_along_is_stored_under_its_digest(
    caller: Caller, module_broker: redis.Redis, make_picture: MakePicture, services: EmbeddedServices
) -> None:
    """The name that the client gives it has no part in the key; metadata and id come beside it."""
    picture = make_picture(seed=11)
    raw, headers = multipart(picture, {"check_id": "with-picture", "metadata": {"user": "u"}})
    reply = caller.post("/v1/checks", raw=raw, headers=headers)
    assert (reply.status, reply.json) == (202, {"check_id": "with-picture"})
    (found,) = enqueued(module_broker)
    assert found.sha256 is not None
    assert (found.bucket, found.key) == ("test-uploads", f"{found.sha256[:2]}/{found.sha256}")
    assert found.metadata == {"user": "u"}
    client = services.seaweedfs.client()
    assert client.get_object(Bucket=found.bucket, Key=found.key)["Body"].read() == picture
    assert caller.post("/v1/checks", raw=raw, headers=headers).status == 202
    raw, _ = multipart(make_picture(seed=12), {"check_id": "with-picture", "metadata": {"user": "u"}})
    assert caller.post("/v1/checks", raw=raw, headers=headers).reason == "submitted_otherwise"
    assert len(enqueued(module_broker)) == 1


def test_an_upload_is_a_picture_within_the_limit(caller: Caller, make_picture: MakePicture) -> None:
    """Anything else is refused, and not stored."""
    picture = make_picture()
    part = '--x\r\nContent-Disposition: form-data; name="other"\r\n\r\n1\r\n'
    for (raw, headers), status in [
        (multipart(b"GIF89" + b"a" * 100), 202),
        (multipart(b"#!/bin/sh\n"), 415),
        (multipart(picture + bytes((1 << 20) + 1)), 413),
        (multipart(picture + bytes(2 << 20)), 413),
        (multipart(picture, {"bucket": "private", "key": "a"}), 422),
        (multipart(picture, {"metadata": {"a": "b" * 5000}}), 422),
        (multipart(picture, more=part), 422),
        ((b"--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"}), 422),
        ((b"nothing", {"Content-Type": "multipart/form-data"}), 400),
    ]:
        reply = caller.post("/v1/checks", raw=raw, headers=headers)
        assert reply.status == status, reply.body
        if status != 202:
            assert reply.reason
