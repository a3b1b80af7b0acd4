"""What a worker reads of the object store: what is listed, from the host that is set, and nothing else."""

import http.server
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse

from worker.contract.messages import ImageCheck
from worker.embedded.services import EmbeddedServices
from worker.embedded.startup import HOST
from worker.settings import Settings
from worker.storage import Storage, StorageRejectedError, StorageUnavailableError

KEYS: Any = {"s3_access_key_id": "key", "s3_secret_access_key": "of a test"}
REDIRECTED = b"<Error><Code>PermanentRedirect</Code></Error>"


@pytest.fixture
def settings(services: EmbeddedServices) -> Callable[..., Settings]:
    """Provide a function that returns settings with a list of what may be read."""
    s3 = services.seaweedfs.client()
    for key in ("incoming/a.jpg", "incoming/deeper/a.jpg", "incoming-private/a.jpg", "a.jpg"):
        s3.put_object(Bucket=services.bucket, Key=f"boundaries/{key}", Body=b"content")

    def make(*allowed: str) -> Settings:
        return Settings(
            s3_endpoint_url=services.s3_endpoint,
            s3_access_key_id=services.access_key,
            s3_secret_access_key=services.secret_key,
            allowed_buckets=allowed,
        )

    return make


def _outcome(settings: Settings, bucket: str, key: str) -> str:
    try:
        return Storage(settings.storage).fetch(ImageCheck(bucket=bucket, key=key)).data.decode()
    except StorageRejectedError as rejected:
        return rejected.reason


def test_only_what_lies_under_a_listed_prefix_is_read(
    settings: Callable[..., Settings], services: EmbeddedServices
) -> None:
    """A bucket with a prefix lets what is below be read; without one, everything in it."""
    bucket = services.bucket
    below = settings("elsewhere", f"{bucket}/boundaries/incoming/")
    assert _outcome(below, bucket, "boundaries/incoming/a.jpg") == "content"
    assert _outcome(below, bucket, "boundaries/incoming/deeper/a.jpg") == "content"
    for key in ("boundaries/a.jpg", "boundaries/incoming-private/a.jpg", "boundaries/incoming"):
        assert _outcome(below, bucket, key) == "bucket_not_allowed"
    assert _outcome(settings(bucket), bucket, "boundaries/a.jpg") == "content"
    assert _outcome(settings(), bucket, "boundaries/a.jpg") == "bucket_not_allowed"


@pytest.mark.parametrize(
    "way", ["boundaries/incoming/../a.jpg", "boundaries/incoming/./../a.jpg", "../{}/boundaries/a.jpg"]
)
def test_a_key_cannot_climb_out_of_its_prefix_or_bucket(
    settings: Callable[..., Settings], services: EmbeddedServices, way: str
) -> None:
    """Parts that are . or .. would be resolved on the way to the store, after the list was asked."""
    listed = settings(f"{services.bucket}/boundaries/incoming/", "uploads")
    for bucket in (services.bucket, "uploads"):
        assert _outcome(listed, bucket, way.format(services.bucket)) == "bucket_not_allowed"


def test_a_check_of_a_version_reads_that_version_and_no_other(
    settings: Callable[..., Settings], services: EmbeddedServices
) -> None:
    """What was submitted is judged though it was replaced since; where no version is named, the newest."""
    s3 = services.seaweedfs.client()
    s3.create_bucket(Bucket="versioned")
    s3.put_bucket_versioning(Bucket="versioned", VersioningConfiguration={"Status": "Enabled"})
    first = s3.put_object(Bucket="versioned", Key="a.jpg", Body=b"first")["VersionId"]
    s3.put_object(Bucket="versioned", Key="a.jpg", Body=b"second")
    storage = Storage(settings("versioned").storage)
    submitted = ImageCheck(bucket="versioned", key="a.jpg", version_id=first)
    assert storage.fetch(submitted).data == b"first"
    assert storage.fetch(ImageCheck(bucket="versioned", key="a.jpg")).data == b"second"


@pytest.mark.parametrize("entry", ["uploads/incoming", "/incoming/", ""])
def test_a_prefix_without_its_slash_is_refused(entry: str) -> None:
    """`uploads/in` would let `uploads/internal` be read too."""
    with pytest.raises(ValueError, match="BUCKET/PREFIX/"):
        Settings(allowed_buckets=(entry,))


class _Server(http.server.ThreadingHTTPServer):
    """Counts its requests and answers each with a status and headers."""

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
        """Answer as the server does; botocore asks with HEAD where it looks for a bucket's region."""
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
        """Keep quiet."""


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
def test_a_store_that_redirects_to_another_host_is_not_followed(
    serve: Callable[..., _Server], status: int
) -> None:
    """No request, and so no signature, reaches the other host; the check is tried again later."""
    other = serve(200, {}, b"what another host has")
    body = f"<Error><Code>PermanentRedirect</Code><Endpoint>{HOST}</Endpoint></Error>".encode()
    headers = {"Location": f"{other.url}/uploads/a.jpg", "x-amz-bucket-region": "eu-west-1"}
    store = serve(status, headers, body)
    settings = Settings(s3_endpoint_url=store.url, **KEYS)
    with pytest.raises(StorageUnavailableError):
        Storage(settings.storage).fetch(ImageCheck(bucket="uploads", key="a.jpg"))
    assert store.paths
    assert other.paths == []


def test_amazon_does_not_send_a_worker_to_another_region() -> None:
    """Without an endpoint of one's own, botocore would repeat the request at the host of another region."""
    storage = Storage(Settings(**KEYS).storage)
    asked: list[str] = []

    def answer(request: Any, **_: Any) -> AWSResponse:
        asked.append(request.url)
        raw = SimpleNamespace(stream=lambda *_, **__: iter([REDIRECTED]))
        return AWSResponse(request.url, 301, {"x-amz-bucket-region": "eu-west-1"}, raw)

    # Stands in for the network; the worker's own refusal was registered before and is asked first.
    storage.client.meta.events.register("before-send.s3", answer)
    with pytest.raises(StorageUnavailableError, match=r"redirects to uploads\.s3\.eu-west-1\.amazonaws\.com"):
        storage.fetch(ImageCheck(bucket="uploads", key="a.jpg"))
    assert asked
    assert all("eu-west-1" not in url for url in asked)
