"""Appeals over HTTP: they reopen a check for people."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from worker.reviews.appeals import MAX_REASON_CHARACTERS, appeal
from worker.reviews.intake import sampling_key, store
from worker.web.api.access import Caller, allow
from worker.web.api.bodies import BoundedRoute, IdempotencyKey
from worker.web.api.checks import CheckId
from worker.web.api.errors import problems
from worker.web.site import CurrentSite

router = APIRouter(prefix="/v1/checks", tags=["appeals"], route_class=BoundedRoute)


class AppealRequest(BaseModel):
    """Why a check is to be looked at again."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field(default="", max_length=MAX_REASON_CHARACTERS, description="For the moderators.")


class OpenedAppeal(BaseModel):
    """An appeal."""

    id: UUID
    check_id: str
    opened_at: datetime
    decided_at: datetime | None = Field(description="None while nobody has decided it.")


@router.post(
    "/{check_id}/appeals",
    status_code=201,
    response_model=OpenedAppeal,
    responses={
        200: {"model": OpenedAppeal, "description": "The check had this appeal already."},
        **problems(400, 401, 403, 404, 409, 422, 429, 503),
    },
    summary="Appeal: people look at the check again, first of all.",
)
def open_appeal(
    parts: CurrentSite,
    caller: Annotated[Caller, Depends(allow("appeals", "admin"))],
    check_id: CheckId,
    body: AppealRequest,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Reopen a check. One that has an open appeal, or had this `Idempotency-Key`, has that appeal."""
    event = parts.check_states.event(check_id)
    with parts.database.transaction() as tx:
        if event:
            # The relay may not have come to it yet.
            store(tx, parts.settings.review, event.envelope, event.raw, key=sampling_key(tx))
        found = appeal(
            tx,
            parts.settings.review,
            check_id,
            idempotency_key=idempotency_key,
            reason=body.reason,
            by=caller.name,
        )
    opened = OpenedAppeal(
        id=found.id, check_id=check_id, opened_at=found.opened_at, decided_at=found.decided_at
    )
    return JSONResponse(opened.model_dump(mode="json"), 201 if found.new else 200)
