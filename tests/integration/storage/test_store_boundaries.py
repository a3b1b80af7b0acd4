"""A worker reads only the listed buckets and prefixes, and only from the configured host."""

import gzip
import hashlib
import http.server
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse

from tests.conftest import StoreObject, settings_of
from worker.contract.messages import ImageCheck
from worker.embedded.services import EmbeddedServices
from worker.embedded.startup import HOST
from worker.settings import Settings
from worker.storage import Storage, StorageRejectedError, StorageUnavailableError

KEYS: Any = {"s3_access_key_id": "key", "s3_secret_access_key": "of a test"}
REDIRECTED = b"<Error><Code>PermanentRedirect</Code></Error>"


@pytest.fixture
def allowing(services: EmbeddedServices, store_object: StoreObject) -> Callable[..., Settings]:
    """Provide a function that returns settings with these `allowed_buckets`."""
    for key in ("incoming/a.jpg", "incoming/deeper/a.jpg", "incoming-private/a.jpg", "a.jpg"):
        store_object(f"boundaries/{key}", b"content")
    return lambda *allowed: settings_of(services.environment(), allowed_buckets=allowed)


def _outcome(settings: Settings, bucket: str, key: str) -> str:
    try:
        return Storage(settings.storage).fetch(ImageCheck(bucket=bucket, key=key)).data.decode()
    except StorageRejectedError as rejected:
        return rejected.reason


def test_only_objects_under_a_listed_prefix_are_read(
    allowing: Callable[..., Settings], services: EmbeddedServices
) -> None:
    """An entry without a prefix allows the whole bucket."""
    bucket = services.bucket
    below = allowing("elsewhere", f"{bucket}/boundaries/incoming/")
    assert _outcome(below, bucket, "boundaries/incoming/a.jpg") == "content"
    assert _outcome(below, bucket, "boundaries/incoming/deeper/a.jpg") == "content"
    for key in ("boundaries/a.jpg", "boundaries/incoming-private/a.jpg", "boundaries/incoming"):
        assert _outcome(below, bucket, key) == "bucket_not_allowed"
    assert _outcome(allowing(bucket), bucket, "boundaries/a.jpg") == "content"
    assert _outcome(allowing(), bucket, "boundaries/a.jpg") == "bucket_not_allowed"


@pytest.mark.parametrize(
    "key", ["boundaries/incoming/../a.jpg", "boundaries/incoming/./../a.jpg", "../{}/boundaries/a.jpg"]
)
def test_a_key_cannot_leave_its_prefix_or_bucket(
    allowing: Callable[..., Settings], services: EmbeddedServices, key: str
) -> None:
    """HTTP clients and servers resolve `.` and `..`, after the worker has compared the prefix."""
    listed = allowing(f"{services.bucket}/boundaries/incoming/", "uploads")
    for bucket in (services.bucket, "uploads"):
        assert _outcome(listed, bucket, key.format(services.bucket)) == "bucket_not_allowed"


def test_a_check_with_a_version_id_reads_that_version(
    allowing: Callable[..., Settings], services: EmbeddedServices
) -> None:
    """Although the object was replaced since; without a version id the newest is read."""
    s3 = services.seaweedfs.client()
    s3.create_bucket(Bucket="versioned")
    s3.put_bucket_versioning(Bucket="versioned", VersioningConfiguration={"Status": "Enabled"})
    first = s3.put_object(Bucket="versioned", Key="a.jpg", Body=b"first")["VersionId"]
    s3.put_object(Bucket="versioned", Key="a.jpg", Body=b"second")
    storage = Storage(allowing("versioned").storage)
    submitted = ImageCheck(bucket="versioned", key="a.jpg", version_id=first)
    assert storage.fetch(submitted).data == b"first"
    assert storage.fetch(ImageCheck(bucket="versioned", key="a.jpg")).data == b"second"


@pytest.mark.parametrize(
    "key", ["a b+c.jpg", "deep//er/a.jpg", "ä/€~!*'()&=;:@,?#%.jpg", "100%25.jpg", "\U0001f600"]
)
def test_an_object_is_read_whatever_its_key(
    allowing: Callable[..., Settings], services: EmbeddedServices, key: str
) -> None:
    """The request names the object that boto3 stored under the key."""
    services.seaweedfs.client().put_object(Bucket=services.bucket, Key=f"boundaries/{key}", Body=key.encode())
    assert _outcome(allowing(services.bucket), services.bucket, f"boundaries/{key}") == key


def test_an_object_that_is_stored_with_a_content_encoding_is_unpacked(
    allowing: Callable[..., Settings], services: EmbeddedServices
) -> None:
    """As a browser would show it."""
    packed: Any = {"Body": gzip.compress(b"content"), "ContentEncoding": "gzip"}
    services.seaweedfs.client().put_object(Bucket=services.bucket, Key="boundaries/packed", **packed)
    assert _outcome(allowing(services.bucket), services.bucket, "boundaries/packed") == "content"


@pytest.mark.parametrize("entry", ["uploads/incoming", "/incoming/", ""])
def test_a_prefix_without_a_final_slash_is_an_invalid_setting(entry: str) -> None:
    """`uploads/in` would allow `uploads/internal` too."""
    with pytest.raises(ValueError, match="BUCKET/PREFIX/"):
        Settings(allowed_buckets=(entry,))


class _Server(http.server.ThreadingHTTPServer):
    """Records the paths of its requests; answers each with the same status, headers and body."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        super().__init__((HOST, 0), _Handler)
        self.answer = status, headers, body
        self.paths: list[str] = []

    @property
    def url(self) -> str:
        """Its http:// URL."""
        return f"http://{HOST}:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        """Send the server's answer; botocore looks for a bucket's region with HEAD."""
        self.server.paths.append(self.path)
        status, headers, body = self.server.answer
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - http.server's own name

    def log_message(self, *_: Any) -> None:
        """No-op: requests are not logged."""


@pytest.fixture
def serve() -> Iterator[Callable[..., _Server]]:
    """Provide a function that starts servers."""
    servers: list[_Server] = []

    def start(status: int, headers: dict[str, str], body: bytes = b"") -> _Server:
        servers.append(_Server(status, headers, body))
        threading.Thread(target=servers[-1].serve_forever, args=(0.05,), daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_to_another_host_is_not_followed(serve: Callable[..., _Server], status: int) -> None:
    """No request, and so no signature, reaches the other host; the check will be retried."""
    other = serve(200, {}, b"an object of another host")
    body = f"<Error><Code>PermanentRedirect</Code><Endpoint>{HOST}</Endpoint></Error>".encode()
    headers = {"Location": f"{other.url}/uploads/a.jpg", "x-amz-bucket-region": "eu-west-1"}
    store = serve(status, headers, body)
    settings = Settings(s3_endpoint_url=store.url, **KEYS)
    with pytest.raises(StorageUnavailableError):
        Storage(settings.storage).fetch(ImageCheck(bucket="uploads", key="a.jpg"))
    assert store.paths
    assert other.paths == []


def test_a_redirect_to_another_region_is_not_followed() -> None:
    """Without a configured endpoint botocore would repeat the request at the host of the other region."""
    storage = Storage(Settings(**KEYS).storage)
    requested: list[str] = []

    def redirect(request: Any, **_: Any) -> AWSResponse:
        requested.append(request.url)
        raw = SimpleNamespace(stream=lambda *_, **__: iter([REDIRECTED]))
        return AWSResponse(request.url, 301, {"x-amz-bucket-region": "eu-west-1"}, raw)

    # In place of the network; the worker's own handler was registered before and is called first.
    storage.client.meta.events.register("before-send.s3", redirect)
    with pytest.raises(StorageUnavailableError, match="redirects to the region eu-west-1; DNF_S3_REGION"):
        storage.fetch(ImageCheck(bucket="uploads", key="a.jpg"))
    assert requested == ["https://uploads.s3.amazonaws.com/a.jpg"]


def test_a_thumbnail_is_stored_under_its_digest_with_its_media_type(
    allowing: Callable[..., Settings], services: EmbeddedServices
) -> None:
    """A browser shows it from the bucket; one that was deleted since is None."""
    s3 = services.seaweedfs.client()
    s3.create_bucket(Bucket="thumbnails-of-tests")
    settings = allowing().model_copy(update={"thumbnail_bucket": "thumbnails-of-tests"})
    storage, data = Storage(settings.storage), b"\xff\xd8\xff and so on"
    digest = hashlib.sha256(data).hexdigest()
    uri = storage.store_thumbnail(data, digest)
    assert uri == f"s3://thumbnails-of-tests/thumbnails/{digest[:2]}/{digest}.jpg"
    key = uri.removeprefix("s3://thumbnails-of-tests/")
    stored = s3.get_object(Bucket="thumbnails-of-tests", Key=key)
    assert (stored["Body"].read(), stored["ContentType"]) == (data, "image/jpeg")
    assert storage.read_thumbnail("thumbnails-of-tests", key) == data
    s3.delete_object(Bucket="thumbnails-of-tests", Key=key)
    assert storage.read_thumbnail("thumbnails-of-tests", key) is None
