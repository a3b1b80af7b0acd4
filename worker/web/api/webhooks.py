"""Endpoints of webhooks over HTTP."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Query
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator
from starlette.responses import Response

from worker.web.api.access import Caller, allow
from worker.web.api.bodies import BoundedRoute
from worker.web.api.errors import problems
from worker.web.problems import ProblemError
from worker.web.site import CurrentSite, Site
from worker.webhooks import deliveries, endpoints
from worker.webhooks.addresses import AddressRefusedError
from worker.webhooks.deliveries import DeliveryState
from worker.webhooks.endpoints import (
    MAX_DESCRIPTION,
    OVERLAP_SECONDS,
    DisabledReason,
    EndpointNotFoundError,
    EventType,
)

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"], route_class=BoundedRoute)

MayManage = Annotated[Caller, Depends(allow("webhooks", "admin"))]
EventTypes = Annotated[list[EventType], Field(min_length=1)]
Url = Annotated[str, Field(max_length=2048)]
Description = Annotated[str, Field(max_length=MAX_DESCRIPTION)]
_ERRORS = problems(400, 401, 403, 404, 422, 429, 503)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewEndpoint(_Body):
    """Where events are to go."""

    url: Url
    event_types: EventTypes
    description: Description = ""


class EndpointChanges(_Body):
    """What is to change of an endpoint; the rest stays."""

    url: Url | None = None
    event_types: EventTypes | None = None
    description: Description | None = None
    active: bool | None = Field(default=None, description="false disables it; true enables it again.")


class Endpoint(BaseModel):
    """An endpoint."""

    id: UUID
    url: str
    event_types: list[EventType]
    description: str
    state: Literal["active", "disabled"]
    disabled_reason: DisabledReason | None
    failing_since: datetime | None = Field(description="The first failure since the last acceptance.")
    created_at: datetime
    old_secret_until: datetime | None = Field(description="Until then the secret before signs too.")


class EndpointWithSecret(Endpoint):
    """An endpoint with its secret, which is shown this once."""

    secret: str = Field(description="`whsec_` and base64, for the libraries of Standard Webhooks.")


class Rotation(_Body):
    """How long both secrets sign."""

    overlap_seconds: float = Field(default=OVERLAP_SECONDS, ge=0, le=30 * 86_400)


class Replay(_Body):
    """One event, or all since a time."""

    event_id: str | None = Field(default=None, max_length=255)
    since: AwareDatetime | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> "Replay":
        if (self.event_id is None) == (self.since is None):
            raise ValueError("give either event_id or since")
        return self


class Replayed(BaseModel):
    """How many events are sent again."""

    events: int


class Delivery(BaseModel):
    """An event's way to the endpoint."""

    event_id: str
    type: str
    state: DeliveryState
    attempts: int
    next_attempt_at: datetime | None
    attempted_at: datetime | None
    status: int | None = Field(description="What the receiver answered last.")
    failure: str | None = Field(description="Why the last attempt failed.")


@router.post("", status_code=201, responses=_ERRORS, summary="Add an endpoint.")
def create(parts: CurrentSite, caller: MayManage, body: NewEndpoint) -> EndpointWithSecret:
    """Add an endpoint and return it with its secret, this once. The URL's addresses are checked."""
    _refuse_unreachable(parts, body.url)
    with parts.database.transaction() as tx:
        created, secret = endpoints.create(
            tx, body.url, body.event_types, description=body.description, by=caller.name
        )
    return EndpointWithSecret(**_shown(created), secret=secret)


@router.get("", responses=_ERRORS, summary="List the endpoints.")
def listed(parts: CurrentSite, caller: MayManage) -> list[Endpoint]:
    """Return all endpoints, oldest first."""
    del caller
    with parts.database.transaction() as tx:
        return [Endpoint(**_shown(found)) for found in endpoints.endpoints(tx)]


@router.get("/{endpoint_id}", responses=_ERRORS, summary="One endpoint.")
def one(parts: CurrentSite, caller: MayManage, endpoint_id: UUID) -> Endpoint:
    """Return an endpoint."""
    del caller
    with parts.database.transaction() as tx, _found():
        return Endpoint(**_shown(endpoints.endpoint(tx, endpoint_id)))


@router.patch("/{endpoint_id}", responses=_ERRORS, summary="Change, disable or enable an endpoint.")
def change(parts: CurrentSite, caller: MayManage, endpoint_id: UUID, body: EndpointChanges) -> Endpoint:
    """Change what is given; an endpoint that is enabled again begins without failures."""
    if body.url is not None:
        _refuse_unreachable(parts, body.url)
    with parts.database.transaction() as tx, _found():
        return Endpoint(**_shown(endpoints.change(tx, endpoint_id, by=caller.name, **body.model_dump())))


@router.delete("/{endpoint_id}", status_code=204, responses=_ERRORS, summary="Remove an endpoint.")
def delete(parts: CurrentSite, caller: MayManage, endpoint_id: UUID) -> Response:
    """Remove an endpoint with its deliveries."""
    with parts.database.transaction() as tx, _found():
        endpoints.delete(tx, endpoint_id, by=caller.name)
    return Response(status_code=204)


@router.post("/{endpoint_id}/rotate", responses=_ERRORS, summary="Give an endpoint a new secret.")
def rotate(parts: CurrentSite, caller: MayManage, endpoint_id: UUID, body: Rotation) -> EndpointWithSecret:
    """Return the endpoint with its new secret, this once; the one before signs too for a while."""
    with parts.database.transaction() as tx, _found():
        rotated, secret = endpoints.rotate(
            tx, endpoint_id, by=caller.name, overlap_seconds=body.overlap_seconds
        )
    return EndpointWithSecret(**_shown(rotated), secret=secret)


@router.post("/{endpoint_id}/replay", responses=_ERRORS, summary="Send events again.")
def replay(parts: CurrentSite, caller: MayManage, endpoint_id: UUID, body: Replay) -> Replayed:
    """Send one event again, or all since a time, of the types to which the endpoint subscribes."""
    with parts.database.transaction() as tx, _found():
        return Replayed(
            events=deliveries.replay(
                tx, endpoint_id, by=caller.name, event_id=body.event_id, since=body.since
            )
        )


@router.get("/{endpoint_id}/deliveries", responses=_ERRORS, summary="What was sent to an endpoint.")
def sent(
    parts: CurrentSite,
    caller: MayManage,
    endpoint_id: UUID,
    state: DeliveryState | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> list[Delivery]:
    """Return deliveries, those attempted last first."""
    del caller
    with parts.database.transaction() as tx, _found():
        found = deliveries.deliveries(tx, endpoint_id, state=state, limit=limit)
    return [Delivery(**vars(delivery)) for delivery in found]


def _refuse_unreachable(parts: Site, url: str) -> None:
    try:
        parts.webhook_addresses.target(url)
    except AddressRefusedError as error:
        raise ProblemError(422, error.reason, str(error)) from error


@contextmanager
def _found() -> Iterator[None]:
    try:
        yield
    except EndpointNotFoundError as error:
        raise ProblemError(404, "not_found", "There is no such endpoint.") from error


def _shown(endpoint: endpoints.Endpoint) -> dict[str, Any]:
    return {**vars(endpoint), "event_types": list(endpoint.event_types)}
