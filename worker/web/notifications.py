"""Notifications of object stores: what they say was stored, in S3's form and in SeaweedFS'."""

import base64
import hashlib
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus

from pydantic import ValidationError

from worker.contract.messages import ImageCheck
from worker.settings import Settings

_STORED = ("ObjectCreated:", "s3:ObjectCreated:")
_SEAWEED_BUCKETS = "/buckets/"
# Folders of SeaweedFS' own: unfinished multipart uploads, and its bookkeeping.
_SEAWEED_OWN = (".uploads", ".system")
# Where workers store thumbnails in the thumbnail bucket.
_THUMBNAILS = "thumbnails/"


class NotificationError(ValueError):
    """The document is no notification; `str()` says what it lacks."""


@dataclass(frozen=True)
class StoredObject:
    """An object that was stored."""

    bucket: str
    key: str
    version_id: str | None
    #: Without quotes.
    etag: str | None


def stored_objects(document: Any) -> list[StoredObject]:
    """Return the objects that a notification says were stored; none for a test event and for deletions.

    Keys are decoded: S3 encodes them as in a form, SeaweedFS' filer does not. Raises `NotificationError`.
    """
    match document:
        case {"Event": "s3:TestEvent"}:
            return []
        case {"Records": [*records]}:
            return [found for record in records if (found := _record(record))]
        case {"event_type": str() as kind, "key": str() as key, "message": {**message}}:
            found = _seaweed(kind, key, message)
            return [found] if found else []
    raise NotificationError("the document has neither Records nor event_type, key and message")


def check_of(stored: StoredObject, settings: Settings) -> ImageCheck | None:
    """Return the check of a stored object; None for one of our own, and for one that no check can name.

    Its id follows from bucket, key, and version or ETag: a notification that comes twice is one check.
    """
    if stored.bucket == settings.thumbnail_bucket and stored.key.startswith(_THUMBNAILS):
        return None
    state = stored.version_id or stored.etag or ""
    digest = hashlib.sha256(f"{stored.bucket}\n{stored.key}\n{state}".encode()).hexdigest()
    try:
        return ImageCheck(
            check_id=f"s3-{digest[:48]}",
            bucket=stored.bucket,
            key=stored.key,
            version_id=stored.version_id,
            etag=stored.etag and f'"{stored.etag}"',
            metadata={"intake": "s3"},
        )
    except ValidationError:
        return None


def _record(record: Any) -> StoredObject | None:
    match record:
        case {"eventName": str() as name, "s3": {"bucket": {"name": str() as bucket}, "object": {**stored}}}:
            key = stored.get("key")
            if not isinstance(key, str):
                raise NotificationError("a record's object has no key")
            if not name.startswith(_STORED):
                return None
            decoded = unquote_plus(key)
            if decoded.endswith("/") and not stored.get("size"):
                return None  # a folder, as consoles make them
            return StoredObject(bucket, decoded, _text(stored.get("versionId")), _etag(stored.get("eTag")))
    raise NotificationError("a record lacks eventName, s3.bucket.name or s3.object")


def _seaweed(kind: str, path: str, message: dict[Any, Any]) -> StoredObject | None:
    entry = message.get("new_entry")
    if kind not in {"create", "update"} or not isinstance(entry, dict) or entry.get("is_directory"):
        return None
    bucket, _, key = path.removeprefix(_SEAWEED_BUCKETS).partition("/")
    if (
        not path.startswith(_SEAWEED_BUCKETS)
        or not key
        or {bucket, key.partition("/")[0]} & set(_SEAWEED_OWN)
    ):
        return None
    return StoredObject(bucket, key, None, _seaweed_etag(entry))


def _seaweed_etag(entry: dict[str, Any]) -> str | None:
    """Return the ETag that the S3 API of SeaweedFS gives the entry."""
    extended, attributes = entry.get("extended"), entry.get("attributes")
    try:
        if isinstance(extended, dict) and (own := extended.get("Seaweed-X-Amz-ETag")):
            return _etag(base64.b64decode(own).decode())
        if isinstance(attributes, dict) and (md5 := attributes.get("md5")):
            return base64.b64decode(md5).hex()
    except (TypeError, ValueError):
        pass
    return None


def _etag(value: object) -> str | None:
    return text.strip('"') if (text := _text(value)) else None


def _text(value: object) -> str | None:
    # Buckets without versions have the version "null".
    return value if isinstance(value, str) and value not in {"", "null"} else None
