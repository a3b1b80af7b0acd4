"""What an answer of the object store means: the upload's fault, for good, or anything else's, for a retry.

An answer is final only in S3's own words, and only to the request for the object itself. A proxy's 403, an
ingress' 404, credentials that could not be had, a missing bucket: all of them end when somebody mends them.
"""

from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from worker.contract.messages import ImageCheck, RefusedError, StorageReason, UnavailableError
from worker.telemetry.logs import get_logger

if TYPE_CHECKING:
    from botocore.exceptions import _ClientErrorResponseTypeDef as ClientErrorResponse

log = get_logger(__name__)

# Answers that pass by themselves.
_TIMEOUT_STATUS, _THROTTLED_STATUS, _FIRST_SERVER_STATUS = 408, 429, 500
# Those of a bucket in another region.
_REDIRECTING = {301, 307, 400}
# The words in which S3 says that an object is encrypted with a key that only its owner has.
_CUSTOMER_KEY = "server side encryption"

_ABOUT_A_VERSION, _ABOUT_AN_ETAG = {"InvalidArgument", "MethodNotAllowed"}, {"PreconditionFailed"}
_FINAL: dict[str, tuple[StorageReason, str]] = {
    "NoSuchKey": ("missing", "There is no object at {uri}."),
    "NoSuchVersion": ("missing", "There is no such version of {uri}."),
    # A version id that no version can have, and one that marks a deletion.
    "InvalidArgument": ("missing", "There is no such version of {uri}."),
    "MethodNotAllowed": ("missing", "There is no such version of {uri}: it was deleted."),
    "KeyTooLongError": ("missing", "There can be no object at {uri}: its key is too long."),
    "AccessDenied": ("forbidden", "The store does not let the worker read {uri}."),
    "PreconditionFailed": ("changed", "The object at {uri} is no longer the one that was submitted."),
    "InvalidObjectState": ("unreadable", "The object at {uri} is archived, and has to be restored first."),
    _CUSTOMER_KEY: ("unreadable", "The object at {uri} is encrypted with its owner's key (SSE-C)."),
}


class StorageRejectedError(RefusedError):
    """The object cannot be had, now or later; `reason` is one of `StorageReason`, `str()` is the detail."""

    def __init__(self, reason: StorageReason, detail: str) -> None:
        super().__init__(detail)
        self.reason: StorageReason = reason


class StorageUnavailableError(UnavailableError):
    """The store throttles, fails, cannot be reached, or waits for its operator: the check is retried."""


def translated(
    error: ClientError, check: ImageCheck, *, operation: str
) -> StorageRejectedError | StorageUnavailableError:
    """Return what an answer to `operation` on a check's object means; one for the operator is logged."""
    answer = error.response.get("Error", {})
    code, message = str(answer.get("Code", "")), str(answer.get("Message", ""))
    # Credentials are fetched by requests of their own, which are refused in the same words.
    if error.operation_name == operation and (final := _final(code, message, check)):
        return final
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if status < _FIRST_SERVER_STATUS and status not in {_TIMEOUT_STATUS, _THROTTLED_STATUS}:
        log.error(
            "storage_refused",
            uri=check.uri,
            operation=error.operation_name,
            status=status,
            code=code,
            detail=str(error)[:500],
        )
    if region := _other_region(error.response):
        return StorageUnavailableError(
            f"{check.uri}: the store redirects to the region {region}; DNF_S3_REGION may be wrong"
        )
    return StorageUnavailableError(f"{check.uri}: {error}")


def _other_region(response: "ClientErrorResponse") -> str | None:
    """Return the region that an answer sends the request to, if it does."""
    facts, answer = response.get("ResponseMetadata", {}), response.get("Error", {})
    if facts.get("HTTPStatusCode") not in _REDIRECTING:
        return None
    region = facts.get("HTTPHeaders", {}).get("x-amz-bucket-region") or answer.get("Region")
    return None if region is None else str(region)


def _final(code: str, message: str, check: ImageCheck) -> StorageRejectedError | None:
    if code == "InvalidRequest" and _CUSTOMER_KEY in message.lower():
        code = _CUSTOMER_KEY
    if (code in _ABOUT_A_VERSION and not check.version_id) or (code in _ABOUT_AN_ETAG and not check.etag):
        return None  # said of something that was not asked
    if code not in _FINAL:
        return None
    reason, detail = _FINAL[code]
    return StorageRejectedError(reason, detail.format(uri=check.uri))
