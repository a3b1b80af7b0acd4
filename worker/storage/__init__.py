"""S3: fetch a picture within limits, store an upload."""

import hashlib
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from detector.images.decode import starts_like_a_picture
from detector.images.thumbnail import CONTENT_TYPE, SUFFIX
from worker.contract.messages import ImageCheck
from worker.storage.exchange import Exchange, current_exchange, limit_exchanges, limited_exchange
from worker.storage.refusals import StorageRejectedError, StorageUnavailableError, translated
from worker.storage.requests import ATTEMPTS, Requests
from worker.telemetry.logs import SecretMask

if TYPE_CHECKING:
    from botocore.awsrequest import AWSPreparedRequest
    from botocore.response import StreamingBody
    from types_boto3_s3.client import S3Client
    from urllib3 import HTTPResponse

    from worker.settings import StorageSettings

__all__ = ["Storage", "StorageRejectedError", "StorageUnavailableError", "Upload"]


@dataclass(frozen=True)
class Upload:
    """A fetched object."""

    #: The picture's file.
    data: bytes
    #: Hexadecimal digest of the object's bytes.
    sha256: str
    #: Size of the object: that of `data`, unless it is stored with a content encoding.
    size: int


# Chunks of a body have headers of their own, which count as well.
_FRAMING = 2
_FIXED_FRAMING = 1 << 20
_UNKNOWN_ENCODINGS = {"br", "bzip2", "compress", "deflate", "x-compress", "zstd"}
_GZIP, _GZIP_FORMAT = b"\x1f\x8b", 16
_LOOPBACK = {"localhost", "::1"}
_AMAZON = ".amazonaws.com"


class Storage:
    """The object store that the settings name; safe for threads."""

    def __init__(self, settings: "StorageSettings") -> None:
        self._settings = settings
        self._secrets = SecretMask(settings.secrets)
        endpoint = settings.endpoint_url.get_secret_value() if settings.endpoint_url else None
        access, secret = settings.access_key_id, settings.secret_access_key
        self._s3: S3Client = boto3.Session().client(
            "s3",
            endpoint_url=endpoint,
            region_name=settings.region,
            aws_access_key_id=access.get_secret_value() if access else None,
            aws_secret_access_key=secret.get_secret_value() if secret else None,
            config=Config(
                connect_timeout=settings.timeout_seconds,
                read_timeout=settings.timeout_seconds,
                max_pool_connections=settings.connections,
                retries={"mode": "standard", "max_attempts": ATTEMPTS},
                s3={"addressing_style": settings.addressing},
                # Other stores than Amazon's need not know the checksums that follow a body.
                request_checksum_calculation="when_supported" if _amazon(endpoint) else "when_required",
                # An empty mapping: no proxy of the environment.
                proxies={} if _loopback(endpoint) else None,
            ),
        )
        limit_exchanges(self._s3)
        # botocore follows a store's redirect to another region, which may be any host.
        self._s3.meta.events.register("before-send.s3", self._refuse_other_hosts)
        self._requests = Requests(self._s3)

    @property
    def client(self) -> "S3Client":
        """The S3 client itself; it sends no request to another host than the endpoint's."""
        return self._s3

    def fetch(self, check: ImageCheck) -> Upload:
        """Return the object, of at most `max_bytes`.

        Raises `StorageRejectedError` when it cannot be had or is not what the check names, and
        `StorageUnavailableError` when the store cannot serve it now.
        """
        self.refuse_unlisted(check)
        limit = self._settings.max_bytes
        with self._exchange(check, "GetObject"):
            reply = self._requests.get(check.bucket, check.key, version_id=check.version_id, etag=check.etag)
            # The body's own `with` gives the bare stream, which takes a truncated reply for a complete one.
            with closing(reply["body"]) as body:
                # A chunked reply does not state its length.
                length = int(reply["headers"].get("content-length", 0))
                if length > limit:
                    raise StorageRejectedError(
                        "too_large", f"The object has {length} bytes; the limit is {limit}."
                    )
                data = _read(body, limit)
        if len(data) > limit:
            raise StorageRejectedError("too_large", f"The object has more than {limit} bytes.")
        digest = hashlib.sha256(data).hexdigest()
        if check.sha256 and digest != check.sha256:
            raise StorageRejectedError("digest_mismatch", "The object's content is not what the check names.")
        size = len(data)
        encoding = reply["headers"].get("content-encoding", "")
        return Upload(_decoded(data, encoding, limit), digest, size)

    def upload(self, path: Path) -> tuple[str, str]:
        """Store a local file in the upload bucket under its digest; return the key and the SHA-256.

        Raises OSError, `StorageRejectedError` or `StorageUnavailableError`.
        """
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        key = f"{digest[:2]}/{digest}{path.suffix.lower()}"
        self.upload_bytes(data, key)
        return key, digest

    def upload_bytes(self, data: bytes, key: str) -> None:
        """Store an object in the upload bucket; raises what `upload` does."""
        check = ImageCheck(bucket=self._settings.upload_bucket, key=key)
        try:
            with self._exchange(check, "PutObject"):
                self._s3.put_object(Bucket=check.bucket, Key=key, Body=data)
        except StorageUnavailableError as error:
            cause = error.__cause__
            if isinstance(cause, ClientError) and cause.response["Error"].get("Code") == "NoSuchBucket":
                raise StorageRejectedError("missing", f"There is no bucket {check.bucket}.") from cause
            raise

    def store_thumbnail(self, data: bytes, sha256: str) -> str:
        """Store a thumbnail in the thumbnail bucket under its digest; return its s3:// URI.

        Raises `StorageUnavailableError`.
        """
        bucket, key = str(self._settings.thumbnail_bucket), f"thumbnails/{sha256[:2]}/{sha256}{SUFFIX}"
        check = ImageCheck(bucket=bucket, key=key)
        with self._exchange(check):
            self._requests.put(bucket, key, data, {"Content-Type": CONTENT_TYPE})
        return check.uri

    def read_thumbnail(self, bucket: str, key: str) -> bytes | None:
        """Return a stored thumbnail, None when it is gone. Raises `StorageUnavailableError`."""
        with self._exchange(ImageCheck(bucket=bucket, key=key)):
            try:
                with closing(self._requests.get(bucket, key)["body"]) as body:
                    return _read(body, self._settings.max_bytes)
            except ClientError as error:
                if error.response["Error"].get("Code") != "NoSuchKey":
                    raise
                return None

    @contextmanager
    def _exchange(self, check: ImageCheck, operation: str = "") -> Iterator[None]:
        """Limit the block's time and bytes, and translate what goes wrong in it.

        Only answers to `operation` on the check's object can be final.
        """
        allowed = _FRAMING * self._settings.max_bytes + _FIXED_FRAMING
        with limited_exchange(self._settings.fetch_seconds, allowed) as exchange:
            try:
                yield
            except ClientError as error:
                raise translated(error, check, operation=operation) from error
            # botocore reads an error's body outside of what translates urllib3's errors.
            except (BotoCoreError, HTTPError, OSError) as error:
                raise self._unavailable(check, error, exchange) from error

    def refuse_unlisted(self, check: ImageCheck) -> None:
        """Raise `StorageRejectedError` for an object that workers may not read."""
        # On its way `incoming/../private` becomes another key, and `../other` another bucket.
        if {".", ".."} & set(check.key.split("/")):
            raise StorageRejectedError(
                "bucket_not_allowed", "A key has no part that is . or .. between slashes."
            )
        for entry in self._settings.allowed_buckets:
            bucket, _, prefix = entry.partition("/")
            if check.bucket == bucket and check.key.startswith(prefix):
                return
        raise StorageRejectedError("bucket_not_allowed", f"Workers may not read {check.uri}.")

    def _refuse_other_hosts(self, request: "AWSPreparedRequest", **_: Any) -> None:
        exchange = current_exchange()
        if exchange and not exchange.remaining_seconds:
            raise StorageUnavailableError("the store answers too slowly")
        own, asked = (str(urlsplit(url).netloc) for url in (self._s3.meta.endpoint_url, request.url))
        # Amazon's buckets are hosts below the endpoint's.
        if asked != own and not asked.endswith(f".{own}"):
            raise StorageUnavailableError(f"the store redirects to {asked}; DNF_S3_REGION may be wrong")

    def _unavailable(
        self, check: ImageCheck, error: Exception, exchange: Exchange
    ) -> StorageUnavailableError:
        what = "the store's answer is too long" if exchange.too_long else error
        # botocore quotes the whole endpoint, and this text is shown in dead letters.
        return StorageUnavailableError(self._secrets.masked(f"{check.uri}: {what}"))


class _Arriving:
    """A response's body whose `read` returns what has arrived; urllib3's own waits for the whole amount."""

    def __init__(self, response: "HTTPResponse") -> None:
        self._response = response

    def read(self, amount: int) -> bytes:
        return self._response.read1(amount)

    def close(self) -> None:
        self._response.close()


def _read(body: "StreamingBody", limit: int) -> bytes:
    """Read at most `limit` + 1 bytes.

    botocore's body verifies length and checksum at its end. Raises BotoCoreError.
    """
    body._raw_stream = _Arriving(body._raw_stream)  # type: ignore[attr-defined] # noqa: SLF001 - a test holds it
    # Its buffer becomes the result; chunks in a list would be held twice while they are joined.
    data = BytesIO()
    while (wanted := limit + 1 - data.tell()) > 0 and (chunk := body.read(min(wanted, 1 << 20))):
        data.write(chunk)
    return data.getvalue()


def _decoded(data: bytes, encoding: str, limit: int) -> bytes:
    """Return the content of an object that is stored with a content encoding, as HTTP means it.

    Uploads that merely claim one are left as they are. Raises `StorageRejectedError`.
    """
    encodings = {name.strip().lower() for name in encoding.split(",")}
    if unknown := encodings & _UNKNOWN_ENCODINGS:
        if starts_like_a_picture(data):
            return data
        raise StorageRejectedError(
            "unreadable", f"The object is stored with the content encoding {unknown.pop()}, not with gzip."
        )
    if not data.startswith(_GZIP) or not encodings & {"gzip", "x-gzip"}:
        return data
    unpacking = zlib.decompressobj(wbits=zlib.MAX_WBITS | _GZIP_FORMAT)
    try:
        content = unpacking.decompress(data, limit + 1)
    except zlib.error as error:
        raise StorageRejectedError(
            "unreadable", "The object is stored with the content encoding gzip, and its gzip data is damaged."
        ) from error
    if len(content) > limit:
        raise StorageRejectedError("too_large", f"The object unpacks to more than {limit} bytes.")
    return content


def _loopback(endpoint: str | None) -> bool:
    host = urlsplit(endpoint or "").hostname or ""
    return host in _LOOPBACK or host.startswith("127.")


def _amazon(endpoint: str | None) -> bool:
    return endpoint is None or (urlsplit(endpoint).hostname or "").endswith(_AMAZON)
