"""Notifications of object stores as intake: what was stored is checked."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends
from pydantic import BaseModel, Field

from worker.client.errors import QueueFullError
from worker.web.api.access import Caller, allow
from worker.web.api.bodies import BoundedRoute
from worker.web.api.errors import problems, queue_full
from worker.web.notifications import NotificationError, stored_objects
from worker.web.problems import ProblemError
from worker.web.site import CurrentSite

router = APIRouter(prefix="/v1/intake", tags=["intake"], route_class=BoundedRoute)


class Taken(BaseModel):
    """What became of a notification."""

    checks: list[str] = Field(description="Ids of the checks, each once for its object's version or content.")
    ignored: int = Field(description="Objects that are not checked: our own, or in other buckets.")


@router.post(
    "/s3",
    status_code=202,
    responses=problems(400, 401, 403, 413, 422, 429, 503),
    summary="Take an S3 event notification.",
)
def s3(
    parts: CurrentSite,
    caller: Annotated[Caller, Depends(allow("intake", "admin"))],
    document: Annotated[
        dict[str, Any], Body(description="`Records` as S3 sends them, or the filer event of SeaweedFS.")
    ],
) -> Taken:
    """Enqueue a check of each stored object in the allowed buckets; deletions and test events are none.

    A notification that comes again is the same checks. The answer comes once the broker has them.
    """
    del caller
    try:
        stored = stored_objects(document)
    except NotificationError as error:
        raise ProblemError(422, "invalid_request", f"{error}.") from error
    try:
        taken = parts.intake.take(stored)
    except QueueFullError as error:
        raise queue_full(error) from error
    return Taken(checks=taken, ignored=len(stored) - len(taken))
