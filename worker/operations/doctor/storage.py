"""Diagnose the object store: reachable, authenticated, readable where it should be, clocks in step."""

import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any
from uuid import uuid4

from botocore.exceptions import BotoCoreError, ClientError

from worker.operations.doctor.diagnosis import Diagnosis, fault, ok, warning
from worker.settings import Settings
from worker.storage import Storage, StorageUnavailableError

# A signature is refused when the clocks are 15 minutes apart.
_SIGNATURE_SECONDS = 15 * 60
_CLOCK_WARNING_SECONDS = 60.0

_KEYS = "DNF_S3_ACCESS_KEY_ID and DNF_S3_SECRET_ACCESS_KEY"
_SYNCHRONISE = "Synchronise both clocks (NTP)."


def diagnose_storage(settings: Settings) -> Iterator[Diagnosis]:
    """Yield a diagnosis of each allowed bucket or prefix, of the thumbnails, and of the store's clock."""
    storage = Storage(settings.storage)
    date: str | None = None
    for allowed in settings.allowed_buckets:
        diagnosis, reply_date = _readable(storage, allowed)
        date = date or reply_date
        yield diagnosis
    if not settings.allowed_buckets:
        yield fault(
            "storage",
            "no bucket is allowed",
            "Every check would be rejected.",
            "List the buckets of the uploads in DNF_ALLOWED_BUCKETS.",
        )
    yield _thumbnails(storage, settings)
    if date:
        yield _clock(date)


def _thumbnails(storage: Storage, settings: Settings) -> Diagnosis:
    """Ask to write an object on a condition that no object fulfils."""
    name = "thumbnails"
    bucket = settings.thumbnail_bucket
    if not bucket:
        return ok(name, f"in Redis for {settings.thumbnail_ttl_seconds} s")
    key = f"thumbnails/dnf-doctor-{uuid4()}"
    try:
        storage.client.put_object(Bucket=bucket, Key=key, Body=b"", IfMatch='"none"')
        # This store knows no conditions.
        storage.client.delete_object(Bucket=bucket, Key=key)
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code not in {"PreconditionFailed", "NoSuchKey", "NotImplemented"}:
            return fault(
                name,
                f"{bucket}: {code}",
                "No thumbnail can be stored, so that every check is retried.",
                f"Create the bucket and grant s3:PutObject for {bucket}/thumbnails/* to the keys ({_KEYS}).",
            )
    except (BotoCoreError, StorageUnavailableError) as error:
        return fault(name, "no answer", str(error), "Set DNF_S3_ENDPOINT_URL to a store that answers.")
    return ok(name, f"in the bucket {bucket}, which can be written")


def _readable(storage: Storage, allowed: str) -> tuple[Diagnosis, str | None]:
    """Read an object there, or a missing key if there is none; return the store's date too."""
    name = f"storage: {allowed}"
    bucket, _, prefix = allowed.partition("/")
    key = f"{prefix}dnf-doctor-{uuid4()}"
    try:
        listed: Any = storage.client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
        key = next((each["Key"] for each in listed.get("Contents", [])), key)
        reply: Any = storage.client.get_object(Bucket=bucket, Key=key)
        with reply["Body"] as body:
            body.read(1)
    except ClientError as error:
        return _refusal(name, bucket, allowed, error), _date(error.response)
    except (BotoCoreError, StorageUnavailableError) as error:
        return fault(
            name, "no answer", str(error), "Set DNF_S3_ENDPOINT_URL to a store that is reachable from here."
        ), None
    return ok(name, "an object was read"), _date(reply)


def _refusal(name: str, bucket: str, allowed: str, error: ClientError) -> Diagnosis:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    observed = f"{status} {code}"
    match code:
        case "NoSuchKey" | "404":
            return ok(name, "readable and empty")
        case "NoSuchBucket":
            return fault(
                name, observed, f"There is no bucket {bucket}.", "Create it, or change DNF_ALLOWED_BUCKETS."
            )
        case "InvalidAccessKeyId" | "SignatureDoesNotMatch":
            return fault(name, observed, "The store does not accept the keys.", f"Set {_KEYS}.")
        case "RequestTimeTooSkewed":
            return fault(name, observed, "The clocks are too far apart.", _SYNCHRONISE)
        case "AccessDenied" | "403" | "AllAccessDisabled":
            return fault(
                name,
                observed,
                f"The keys may not read or list {allowed}: every upload would be rejected as `forbidden`,"
                " even a missing one.",
                f"Grant s3:GetObject and s3:ListBucket to the keys ({_KEYS}).",
            )
        case _:
            return fault(name, observed, str(error), "Read the store's log.")


def _date(reply: Any) -> str | None:
    date: str | None = reply.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    return date


def _clock(date: str) -> Diagnosis:
    name = "storage clock"
    # The header has whole seconds.
    difference = max(0.0, abs(time.time() - parsedate_to_datetime(date).timestamp()) - 1)
    observed = f"{difference:.0f} s apart"
    if difference >= _SIGNATURE_SECONDS:
        return fault(name, observed, "The store refuses every signature.", _SYNCHRONISE)
    if difference > _CLOCK_WARNING_SECONDS:
        return warning(
            name, observed, "From 15 minutes apart the store refuses every signature.", _SYNCHRONISE
        )
    return ok(name, observed)
