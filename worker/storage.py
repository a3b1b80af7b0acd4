"""S3: fetch a picture within limits, store an upload."""

import hashlib
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from worker.contract.messages import ImageCheck, RefusedError, StorageReason, UnavailableError
from worker.telemetry.logs import SecretMask

if TYPE_CHECKING:
    from botocore.awsrequest import AWSPreparedRequest
    from botocore.response import StreamingBody
    from types_boto3_s3.client import S3Client
    from urllib3 import HTTPResponse

    from worker.settings import StorageSettings


class StorageRejectedError(RefusedError):
    """The object cannot be had, now or later; `reason` is one of `StorageReason`, `str()` is the detail."""

    def __init__(self, reason: StorageReason, detail: str) -> None:
        super().__init__(detail)
        self.reason: StorageReason = reason


class StorageUnavailableError(UnavailableError):
    """The store throttles, fails or cannot be reached: the check is retried."""


@dataclass(frozen=True)
class Upload:
    """A fetched object."""

    data: bytes
    #: Hexadecimal digest of `data`.
    sha256: str


# A malformed version id, and one that marks a deletion, come without 404.
_MISSING = {"InvalidArgument", "MethodNotAllowed"}
# Answered with 403 too, but at fault is the worker's key or clock: the check is retried until an operator
# has set it right.
_OPERATORS = {
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
_FORBIDDEN_STATUS, _MISSING_STATUS, _CHANGED_STATUS = 403, 404, 412


class Storage:
    """The object store that the settings name; safe for threads."""

    def __init__(self, settings: "StorageSettings") -> None:
        self._settings = settings
        self._secrets = SecretMask(settings.secrets)
        endpoint = settings.endpoint_url.get_secret_value() if settings.endpoint_url else None
        access, secret = settings.access_key_id, settings.secret_access_key
        self._s3: S3Client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name=settings.region,
            aws_access_key_id=access.get_secret_value() if access else None,
            aws_secret_access_key=secret.get_secret_value() if secret else None,
            config=Config(
                connect_timeout=settings.timeout_seconds,
                read_timeout=settings.timeout_seconds,
                max_pool_connections=settings.connections,
                retries={"mode": "standard", "max_attempts": 2},
                s3={"addressing_style": "path"} if endpoint else {},
            ),
        )
        # botocore follows a store's redirect to another region, which may be any host.
        self._s3.meta.events.register("before-send.s3", self._refuse_other_hosts)

    @property
    def client(self) -> "S3Client":
        """The S3 client itself; it sends no request to another host than the endpoint's."""
        return self._s3

    def fetch(self, check: ImageCheck) -> Upload:
        """Return the object, of at most `max_bytes`.

        Raises `StorageRejectedError` when it cannot be had or is not what the check names, and
        `StorageUnavailableError` when the store cannot serve it now.
        """
        self._refuse_unlisted(check)
        request: dict[str, Any] = {"Bucket": check.bucket, "Key": check.key}
        if check.version_id:
            request["VersionId"] = check.version_id
        if check.etag:
            request["IfMatch"] = check.etag
        limit = self._settings.max_bytes
        deadline = time.monotonic() + self._settings.fetch_seconds
        try:
            reply = self._s3.get_object(**request)
            # The body's own `with` gives the bare stream, which takes a truncated reply for a complete one.
            with closing(reply["Body"]) as body:
                # A chunked reply does not state its length.
                length = reply.get("ContentLength", 0)
                if length > limit:
                    raise StorageRejectedError(
                        "too_large", f"The object has {length} bytes; the limit is {limit}."
                    )
                data = _read(body, limit, deadline)
        except ClientError as error:
            raise _translated(error, check) from error
        except (BotoCoreError, OSError) as error:
            raise self._unavailable(check, error) from error
        if len(data) > limit:
            raise StorageRejectedError("too_large", f"The object has more than {limit} bytes.")
        digest = hashlib.sha256(data).hexdigest()
        if check.sha256 and digest != check.sha256:
            raise StorageRejectedError("digest_mismatch", "The object's content is not what the check names.")
        return Upload(data, digest)

    def upload(self, path: Path) -> tuple[str, str]:
        """Store a local file in the upload bucket under its digest; return the key and the SHA-256.

        Raises OSError, `StorageRejectedError` or `StorageUnavailableError`.
        """
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        key = f"{digest[:2]}/{digest}{path.suffix.lower()}"
        check = ImageCheck(bucket=self._settings.upload_bucket, key=key)
        try:
            self._s3.put_object(Bucket=check.bucket, Key=key, Body=data)
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code")
            if code == "NoSuchBucket":
                raise StorageRejectedError("missing", f"There is no bucket {check.bucket}.") from error
            if _status(error) == _FORBIDDEN_STATUS and code not in _OPERATORS:
                raise StorageRejectedError("forbidden", f"The store does not take {check.uri}.") from error
            raise _translated(error, check) from error
        except BotoCoreError as error:
            raise self._unavailable(check, error) from error
        return key, digest

    def store_thumbnail(self, data: bytes, sha256: str) -> str:
        """Store a thumbnail in the thumbnail bucket under its digest; return its s3:// URI.

        Raises `StorageUnavailableError`.
        """
        bucket, key = str(self._settings.thumbnail_bucket), f"thumbnails/{sha256[:2]}/{sha256}.png"
        check = ImageCheck(bucket=bucket, key=key)
        try:
            self._s3.put_object(Bucket=bucket, Key=key, Body=data, ContentType="image/png")
        except (ClientError, BotoCoreError, OSError) as error:
            raise self._unavailable(check, error) from error
        return check.uri

    def read_thumbnail(self, bucket: str, key: str) -> bytes | None:
        """Return a stored thumbnail, None when it is gone. Raises `StorageUnavailableError`."""
        check = ImageCheck(bucket=bucket, key=key)
        try:
            return self._s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        except self._s3.exceptions.NoSuchKey:
            return None
        except (ClientError, BotoCoreError, OSError) as error:
            raise self._unavailable(check, error) from error

    def _refuse_unlisted(self, check: ImageCheck) -> None:
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
        own, asked = (str(urlsplit(url).netloc) for url in (self._s3.meta.endpoint_url, request.url))
        # Amazon's buckets are hosts below the endpoint's.
        if asked != own and not asked.endswith(f".{own}"):
            raise StorageUnavailableError(f"the store redirects to {asked}; DNF_S3_REGION may be wrong")

    def _unavailable(self, check: ImageCheck, error: Exception) -> StorageUnavailableError:
        # botocore quotes the whole endpoint, and this text is shown in dead letters.
        return StorageUnavailableError(self._secrets.masked(f"{check.uri}: {error}"))


class _Arriving:
    """A response's body whose `read` returns what has arrived; urllib3's own waits for the whole amount."""

    def __init__(self, response: "HTTPResponse") -> None:
        self._response = response

    def read(self, amount: int) -> bytes:
        return self._response.read1(amount)

    def close(self) -> None:
        self._response.close()


def _read(body: "StreamingBody", limit: int, deadline: float) -> bytes:
    """Read at most `limit` + 1 bytes, until the deadline.

    botocore's body verifies length and checksum at its end. Raises `StorageUnavailableError` and
    BotoCoreError.
    """
    body._raw_stream = _Arriving(body._raw_stream)  # type: ignore[attr-defined] # noqa: SLF001 - a test holds it
    chunks: list[bytes] = []
    wanted = limit + 1
    while wanted > 0 and (chunk := body.read(min(wanted, 1 << 20))):
        chunks.append(chunk)
        wanted -= len(chunk)
        if time.monotonic() > deadline:
            raise StorageUnavailableError("the object arrived too slowly")
    return b"".join(chunks)


def _translated(error: ClientError, check: ImageCheck) -> StorageRejectedError | StorageUnavailableError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = _status(error)
    if status == _MISSING_STATUS or code in _MISSING:
        return StorageRejectedError("missing", f"There is no object at {check.uri}.")
    if status == _CHANGED_STATUS:
        return StorageRejectedError(
            "changed", f"The object at {check.uri} is no longer the one that was submitted."
        )
    if status == _FORBIDDEN_STATUS and code not in _OPERATORS:
        return StorageRejectedError("forbidden", f"The store does not let the worker read {check.uri}.")
    return StorageUnavailableError(f"{check.uri}: {code or error}")


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
