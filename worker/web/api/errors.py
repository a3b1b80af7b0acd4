"""Problems in the description of the API."""

from typing import Any

from pydantic import BaseModel, Field

from worker.client.errors import QueueFullError
from worker.web.problems import ProblemError

_QUEUE_FULL_SECONDS = 5
_MEANINGS = {
    400: "The body cannot be read.",
    401: "No token, or one that is unknown, revoked or expired.",
    403: "The token has not the scope, or the person not the role.",
    404: "There is no such thing, or no longer.",
    409: "It contradicts what was there before.",
    413: "The body is too large.",
    415: "The file is not a picture.",
    422: "The request is not valid; `faults` says where.",
    429: "The queue is full, or there were too many requests: again after `Retry-After` seconds.",
    503: "Broker, database or store do not answer: again after `Retry-After` seconds.",
}


class Problem(BaseModel):
    """An error, as problem details (RFC 9457)."""

    type: str = Field(description="`urn:dnf:problem:` and the reason.")
    title: str
    status: int
    reason: str = Field(description="One word from a closed list, for programs.")
    detail: str = Field(description="The reason in words, for people.")


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the description of these answers."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": _MEANINGS[status], "content": content} for status in statuses}


def queue_full(error: QueueFullError) -> ProblemError:
    """Return the problem of a queue without room."""
    return ProblemError(429, "queue_full", f"{error}.", headers={"Retry-After": str(_QUEUE_FULL_SECONDS)})
