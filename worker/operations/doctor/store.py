"""The object store: reached, trusted, readable where it should be, and of the same time."""

import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any
from uuid import uuid4

from botocore.exceptions import BotoCoreError, ClientError

from worker.operations.doctor.check import Check, fault, ok, warning
from worker.settings import Settings
from worker.storage import Storage, StorageUnavailableError

# A signature is refused when the clocks are 15 minutes apart.
_SIGNATURE_SECONDS = 15 * 60
_CLOCK_WARNING_SECONDS = 60.0

_KEYS = "DNF_S3_ACCESS_KEY_ID and DNF_S3_SECRET_ACCESS_KEY"


def check_store(settings: Settings) -> Iterator[Check]:
    """Yield a check of each place that may be read, and one of the store's clock."""
    storage = Storage(settings)
    date: str | None = None
    for entry in settings.allowed_buckets:
        check, seen_date = _readable(storage, entry)
        date = date or seen_date
        yield check
    if not settings.allowed_buckets:
        yield fault(
            "store", "no bucket is listed", "Every check would be rejected.", "DNF_ALLOWED_BUCKETS=uploads"
        )
    if date:
        yield _clock(date)


def _readable(storage: Storage, entry: str) -> tuple[Check, str | None]:
    """Read an object of a place, or one that is not there if it is empty; return the store's date too."""
    name = f"store: {entry}"
    bucket, _, prefix = entry.partition("/")
    key = f"{prefix}dnf-doctor-{uuid4()}"
    try:
        listed: Any = storage.client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
        key = next((each["Key"] for each in listed.get("Contents", [])), key)
        reply: Any = storage.client.get_object(Bucket=bucket, Key=key)
        with reply["Body"] as body:
            body.read(1)
    except ClientError as error:
        return _told(name, bucket, entry, error), _date(error.response)
    except (BotoCoreError, StorageUnavailableError) as error:
        return fault(
            name, "no answer", str(error), "a DNF_S3_ENDPOINT_URL that can be reached from here"
        ), None
    return ok(name, "an object was read"), _date(reply)


def _told(name: str, bucket: str, entry: str, error: ClientError) -> Check:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    seen = f"{status} {code}"
    match code:
        case "NoSuchKey" | "404":
            return ok(name, "nothing in it, and it may be read")
        case "NoSuchBucket":
            return fault(
                name, seen, f"There is no bucket {bucket}.", "DNF_ALLOWED_BUCKETS, or make the bucket"
            )
        case "InvalidAccessKeyId" | "SignatureDoesNotMatch":
            return fault(name, seen, "The store does not accept the keys.", _KEYS)
        case "RequestTimeTooSkewed":
            return fault(name, seen, "The clocks are too far apart.", "time synchronisation (NTP)")
        case "AccessDenied" | "403" | "AllAccessDisabled":
            return fault(
                name,
                seen,
                f"The keys may not read or list {entry}: uploads would be rejected as `forbidden`, those that"
                " are missing too.",
                f"the rights s3:GetObject and s3:ListBucket for these keys ({_KEYS})",
            )
        case _:
            return fault(name, seen, str(error), "see what the store logs")


def _date(reply: Any) -> str | None:
    date: str | None = reply.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    return date


def _clock(date: str) -> Check:
    name = "store clock"
    # The header has whole seconds.
    apart = max(0.0, abs(time.time() - parsedate_to_datetime(date).timestamp()) - 1)
    seen = f"{apart:.0f} s apart"
    if apart >= _SIGNATURE_SECONDS:
        return fault(name, seen, "The store refuses every signature.", "time synchronisation (NTP)")
    if apart > _CLOCK_WARNING_SECONDS:
        return warning(
            name, seen, "From 15 minutes on the store refuses signatures.", "time synchronisation (NTP)"
        )
    return ok(name, seen)
