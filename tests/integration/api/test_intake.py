"""Notifications as intake: by HTTP from a real SeaweedFS, and by SQS."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.integration.api.conftest import CallerWith
from tests.integration.api.test_submissions import enqueued
from tests.served_page import Caller, bearer, served, token
from tests.unit.web.test_notifications import record
from tests.webhook_receiver import wait_until
from worker.broker import keys
from worker.database.database import Database
from worker.embedded.seaweedfs import SeaweedFS
from worker.embedded.startup import HOST
from worker.settings import Settings


@pytest.fixture(autouse=True)
def _empty_queue(module_broker: redis.Redis) -> Iterator[None]:
    yield
    module_broker.delete("image-checks")


def test_a_notification_that_comes_twice_is_one_check_of_each_object(
    caller: Caller, module_broker: redis.Redis
) -> None:
    """What is in other buckets is ignored; a test event is accepted."""
    records = [record("a.jpg", bucket="test-uploads"), record("b%20c.jpg", bucket="test-uploads")]
    document = {"Records": [*records, record("x.jpg", bucket="private"), records[0]]}
    first, second = caller.post("/v1/intake/s3", document), caller.post("/v1/intake/s3", document)
    assert first.status == 202
    assert first.json == second.json
    assert [found.check_id for found in enqueued(module_broker)] == first.json["checks"]
    assert [found.key for found in enqueued(module_broker)] == ["a.jpg", "b c.jpg"]
    assert caller.post("/v1/intake/s3", {"Event": "s3:TestEvent"}).json == {"checks": [], "ignored": 0}
    assert caller.post("/v1/intake/s3", {"a": 1}).reason == "invalid_request"


def test_an_object_that_was_submitted_in_other_words_holds_no_other_up(
    caller: Caller, module_broker: redis.Redis
) -> None:
    """As an earlier version may have done: that one is known, the others are enqueued."""
    records = [record(f"other-{number}.jpg", bucket="test-uploads") for number in range(3)]
    ids = caller.post("/v1/intake/s3", {"Records": records[1:2]}).json["checks"]
    module_broker.set(keys.submitted(ids[0]), f"{'0' * 64}:1")
    module_broker.delete("image-checks")
    reply = caller.post("/v1/intake/s3", {"Records": records})
    assert reply.status == 202
    assert [found.key for found in enqueued(module_broker)] == ["other-0.jpg", "other-2.jpg"]
    assert reply.json["checks"][1] == ids[0]


def test_what_seaweedfs_stores_is_checked_once_for_each_content(
    api_settings: Settings,
    module_database: Database,
    module_broker: redis.Redis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By its filer's webhook with our token: a put, an overwrite, a multipart upload, and no folder."""
    with served(api_settings, module_database) as port:
        folder = tmp_path / "home" / ".seaweedfs"
        folder.mkdir(parents=True)
        (folder / "notification.toml").write_text(
            "[notification.webhook]\nenabled = true\n"
            f'endpoint = "http://{HOST}:{port}/v1/intake/s3"\n'
            f'bearer_token = "{token(module_database, "intake")}"\nevent_types = ["create", "update"]\n'
        )
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        store = SeaweedFS(tmp_path / "store", "test-uploads")
        store.start()
        try:
            client = store.client()
            bucket = {"Bucket": "test-uploads"}
            etags = [
                client.put_object(**bucket, Key="in/a b+ä.jpg", Body=b)["ETag"] for b in (b"1", b"2", b"2")
            ]
            upload = client.create_multipart_upload(**bucket, Key="big.jpg")["UploadId"]
            part = client.upload_part(**bucket, Key="big.jpg", UploadId=upload, PartNumber=1, Body=b"3")
            done = client.complete_multipart_upload(
                **bucket,
                Key="big.jpg",
                UploadId=upload,
                MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]},
            )
            expected = {("in/a b+ä.jpg", etag) for etag in etags} | {("big.jpg", done["ETag"])}
            wait_until(lambda: expected <= {(found.key, found.etag) for found in enqueued(module_broker)})
            found = [found for found in enqueued(module_broker) if found.key != "ready"]
            assert sorted((each.key, each.etag) for each in found) == sorted(expected)
            newest = client.get_object(**bucket, Key="in/a b+ä.jpg", IfMatch=etags[2])["Body"].read()
            assert newest == b"2"
        finally:
            store.kill()


class Queue:
    """The part of SQS that a consumer needs, over its JSON protocol."""

    def __init__(self, *bodies: str) -> None:
        self.waiting = {f"receipt-{number}": body for number, body in enumerate(bodies)}
        self.receives = 0
        queue = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
                answer: dict[str, Any] = {}
                if self.headers["x-amz-target"] == "AmazonSQS.ReceiveMessage":
                    assert asked["WaitTimeSeconds"] == 20
                    queue.receives += 1
                    answer["Messages"] = [
                        {
                            "MessageId": receipt,
                            "ReceiptHandle": receipt,
                            "Body": body,
                            "MD5OfBody": hashlib.md5(body.encode(), usedforsecurity=False).hexdigest(),
                        }
                        for receipt, body in list(queue.waiting.items())
                    ]
                    if not answer["Messages"]:
                        queue.idle.wait(0.2)
                else:
                    queue.waiting.pop(asked["ReceiptHandle"], None)
                text = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("content-type", "application/x-amz-json-1.0")
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's signature
                """Print nothing."""

        self.idle = threading.Event()
        self._server = ThreadingHTTPServer((HOST, 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        """The queue's URL."""
        return f"http://{HOST}:{self._server.server_address[1]}/1/notifications"

    def close(self) -> None:
        """Stop serving."""
        self.idle.set()
        self._server.shutdown()
        self._server.server_close()


def test_a_message_of_sqs_is_deleted_once_the_broker_has_its_checks(
    api_settings: Settings,
    module_database: Database,
    module_broker: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Directly or through SNS; one that is no notification stays for the queue's own policy."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    direct = json.dumps({"Records": [record("direct.jpg", bucket="test-uploads")]})
    through_sns = json.dumps(
        {
            "Type": "Notification",
            "Message": json.dumps({"Records": [record("sns.jpg", bucket="test-uploads")]}),
        }
    )
    queue = Queue(direct, "not JSON", through_sns, '{"Event": "s3:TestEvent"}', '{"a": ' + "[" * 100 + "1")
    try:
        with served(api_settings.model_copy(update={"intake_sqs_url": queue.url}), module_database):
            wait_until(lambda: len(queue.waiting) == 2 and queue.receives > 1)
    finally:
        queue.close()
    assert sorted(found.key for found in enqueued(module_broker)) == ["direct.jpg", "sns.jpg"]
    assert sorted(queue.waiting) == ["receipt-1", "receipt-4"]


def test_a_message_stays_while_the_broker_is_full(
    api_settings: Settings,
    module_database: Database,
    module_broker: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    caller_with: CallerWith,
) -> None:
    """It is delivered again, and so is a notification over HTTP, which is answered 429."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    document = {"Records": [record("full.jpg", bucket="test-uploads")]}
    module_broker.lpush("image-checks", *[b"x"] * 2000)
    assert caller_with("intake").post("/v1/intake/s3", document).reason == "queue_full"
    queue = Queue(json.dumps(document))
    try:
        with served(api_settings.model_copy(update={"intake_sqs_url": queue.url}), module_database) as port:
            wait_until(lambda: queue.receives >= 1)
            assert Caller(port, bearer("dnf_none")).get("/v1/webhooks").status == 401
    finally:
        queue.close()
    assert list(queue.waiting) == ["receipt-0"]
    assert module_broker.llen("image-checks") == 2000
