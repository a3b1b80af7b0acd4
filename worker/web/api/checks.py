"""Checks over HTTP: submit one, with its picture or without, or a batch; ask for one and its thumbnail."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from detector.images.decode import starts_like_a_picture
from worker.client.errors import NoVerdictError, QueueFullError
from worker.contract.messages import DEFAULT_QUEUE, ImageCheck, QueueName, Verdict, first_fault
from worker.storage import StorageRejectedError
from worker.web.api.access import Caller, allow
from worker.web.api.bodies import BoundedRoute, IdempotencyKey, is_multipart, parsed
from worker.web.api.errors import problems, queue_full
from worker.web.check_states import CheckState
from worker.web.problems import ProblemError
from worker.web.site import CurrentSite, Site
from worker.web.submissions import CheckRequest, Conflict

router = APIRouter(prefix="/v1/checks", tags=["checks"], route_class=BoundedRoute)

MAX_BATCH = 500
MAX_WAIT_SECONDS = 60

CheckId = Annotated[str, Path(pattern=r"^[A-Za-z0-9._:-]{1,128}$")]
MayWrite = Annotated[Caller, Depends(allow("checks:write", "admin"))]
# Not moderators: an audit is blind until they have decided.
MayRead = Annotated[Caller, Depends(allow("checks:read", "auditor", "admin"))]


class Accepted(BaseModel):
    """A check that the broker has."""

    check_id: str


class UploadFields(BaseModel):
    """What may come with a picture, as JSON in the part `check`."""

    model_config = ConfigDict(extra="forbid")

    check_id: str | None = Field(default=None, pattern=r"^[A-Za-z0-9._:-]{1,128}$")
    metadata: dict[str, JsonValue] = Field(default_factory=dict)
    policy: str = "default"
    queue: QueueName = DEFAULT_QUEUE


class Batch(BaseModel):
    """Checks for one queue."""

    model_config = ConfigDict(extra="forbid")

    queue: QueueName = DEFAULT_QUEUE
    checks: list[ImageCheck] = Field(min_length=1, max_length=MAX_BATCH)

    @field_validator("checks")
    @classmethod
    def _distinct(cls, checks: list[ImageCheck]) -> list[ImageCheck]:
        if len({check.check_id for check in checks}) < len(checks):
            raise ValueError("two checks have one check_id")
        return checks


class AcceptedBatch(BaseModel):
    """Checks that the broker has, in the order of the request."""

    checks: list[Accepted]


_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/CheckRequest"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["picture"],
                    "properties": {
                        "picture": {"type": "string", "format": "binary", "description": "The file itself."},
                        "check": {"$ref": "#/components/schemas/UploadFields"},
                    },
                },
                "encoding": {"check": {"contentType": "application/json"}},
            },
        },
    }
}


@router.post(
    "",
    status_code=202,
    response_model=Accepted,
    responses=problems(400, 401, 403, 409, 413, 415, 422, 429, 503),
    openapi_extra=_BODY,
    summary="Submit a check of an object in the store, or of a picture that comes along.",
)
async def submit(
    request: Request, parts: CurrentSite, caller: MayWrite, idempotency_key: IdempotencyKey = None
) -> Response:
    """Enqueue a check. It is answered once the broker has it.

    The same `check_id`, or the same `Idempotency-Key` of the same caller, is one check however often it is
    sent; with another body it is refused. A picture that comes along is stored in the upload bucket under its
    digest.
    """
    guard = _guard(caller, idempotency_key)
    if is_multipart(request):
        check = await _uploaded(request, parts, guard)
    else:
        try:
            check = CheckRequest.model_validate(_identified(await request.json(), guard))
        except ValidationError as error:
            raise _invalid(error) from error
        except ValueError as error:
            raise ProblemError(400, "malformed", "The body is not a JSON object.") from error
    await run_in_threadpool(_enqueue, parts, [check], check.queue, guard)
    return JSONResponse({"check_id": check.check_id}, 202, {"Location": f"/v1/checks/{check.check_id}"})


@router.post(
    "/batch",
    status_code=202,
    responses=problems(400, 401, 403, 409, 413, 422, 429, 503),
    summary=f"Submit up to {MAX_BATCH} checks, all or none.",
)
def submit_batch(parts: CurrentSite, caller: MayWrite, batch: Batch) -> AcceptedBatch:
    """Enqueue checks of objects in the store, each as if it was submitted by itself; all or none."""
    del caller
    requests = [CheckRequest(**check.model_dump(), queue=batch.queue) for check in batch.checks]
    _enqueue(parts, requests, batch.queue, None)
    return AcceptedBatch(checks=[Accepted(check_id=request.check_id) for request in requests])


@router.get(
    "/{check_id}",
    response_model=CheckState,
    responses=problems(401, 403, 404, 422, 429, 503),
    summary="Ask for a check: its state, its event, and what people decided.",
)
async def state(
    parts: CurrentSite,
    caller: MayRead,
    check_id: CheckId,
    wait: Annotated[
        float,
        Query(ge=0, le=MAX_WAIT_SECONDS, description="Seconds to wait for the event."),
    ] = 0,
) -> Response:
    """Return a check's state. With `wait` the answer comes with the event, or after that time without it."""
    del caller
    since = await parts.waiting.position() if wait else None
    found = await run_in_threadpool(parts.check_states.state, check_id)
    if wait and (found is None or found["state"] in {"queued", "retrying"}):
        with suppress(NoVerdictError):
            await parts.waiting.wait_for(check_id, timeout_seconds=wait, since=since)
        found = await run_in_threadpool(parts.check_states.state, check_id)
    if found is None:
        raise _not_found()
    return JSONResponse(found)


@router.get(
    "/{check_id}/thumbnail",
    response_class=Response,
    responses={
        200: {"content": {"image/jpeg": {}, "image/png": {}}, "description": "The picture."},
        **problems(401, 403, 404, 422, 429, 503),
    },
    summary="The picture of a check's Diffusion Noise Feature.",
)
def thumbnail(parts: CurrentSite, caller: MayRead, check_id: CheckId) -> Response:
    """Return the thumbnail of a verdict, while it is kept."""
    del caller
    event = parts.check_states.event(check_id)
    if event is None:
        raise _not_found()
    data = event.envelope.data
    picture = parts.client.thumbnail(event)
    if not isinstance(data, Verdict) or picture is None:
        raise ProblemError(404, "no_thumbnail", "The check has no thumbnail, or no longer.")
    return Response(
        picture,
        media_type=data.thumbnail.content_type,
        headers={"ETag": f'"{data.thumbnail.sha256}"', "Cache-Control": "private, max-age=3600"},
    )


async def _uploaded(request: Request, parts: Site, guard: str | None) -> CheckRequest:
    """Store the picture of an upload and return its check."""
    async with _form(request) as form:
        file, text = form.get("picture"), form.get("check", "{}")
        if not isinstance(file, UploadFile) or not isinstance(text, str) or set(form) - {"picture", "check"}:
            raise ProblemError(
                422,
                "invalid_request",
                "An upload has a file in the part picture, JSON in the part check.",
            )
        try:
            fields = UploadFields.model_validate(_identified(parsed(text.encode()), guard))
        except ValidationError as error:
            raise _invalid(error) from error
        # Until here the file is on disk.
        async with parts.uploads:
            return await run_in_threadpool(_store, parts, fields, file.file)


@asynccontextmanager
async def _form(request: Request) -> AsyncIterator[FormData]:
    try:
        async with request.form(max_files=1, max_fields=1, max_part_size=64 << 10) as form:
            yield form
    except HTTPException as error:
        raise ProblemError(400, "malformed", f"The upload cannot be read: {error.detail}") from error
    except ClientDisconnect as error:
        raise ProblemError(400, "malformed", "The request ended before its body.") from error


def _store(parts: Site, fields: UploadFields, file: BinaryIO) -> CheckRequest:
    """Store a picture under its digest and return its check. Raises `ProblemError`."""
    limit = parts.settings.max_bytes
    data = file.read(limit + 1)
    if len(data) > limit:
        raise ProblemError(413, "too_large", f"The picture has more than {limit} bytes.")
    if not starts_like_a_picture(data):
        raise ProblemError(415, "not_an_image", "The file is not JPEG, PNG, WebP, GIF or AVIF.")
    digest = hashlib.sha256(data).hexdigest()
    own = {} if fields.check_id is None else {"check_id": fields.check_id}
    try:
        check = CheckRequest(
            bucket=parts.settings.upload_bucket,
            key=f"{digest[:2]}/{digest}",
            sha256=digest,
            metadata=fields.metadata,
            policy=fields.policy,
            queue=fields.queue,
            **own,
        )
        parts.client.storage.refuse_unlisted(check)
        parts.client.storage.upload_bytes(data, check.key)
    except ValidationError as error:
        raise _invalid(error) from error
    except StorageRejectedError as error:
        raise ProblemError(422, error.reason, str(error)) from error
    return check


def _enqueue(parts: Site, requests: list[CheckRequest], queue: QueueName, guard: str | None) -> None:
    """Enqueue checks. Raises `ProblemError` and `QueueUnreachableError`."""
    try:
        for request in requests:
            parts.client.storage.refuse_unlisted(request)
        outcome = parts.submissions.submit(requests, queue=queue, guard=guard)
    except StorageRejectedError as error:
        raise ProblemError(422, error.reason, str(error)) from error
    except QueueFullError as error:
        raise queue_full(error) from error
    if isinstance(outcome, Conflict):
        check_id = requests[outcome.index].check_id
        raise ProblemError(
            409,
            "submitted_otherwise",
            f"A check {check_id}, or one under this Idempotency-Key, was submitted with another body.",
            check_id=check_id,
            index=outcome.index,
        )


def _guard(caller: Caller, idempotency_key: str | None) -> str | None:
    """Return what an idempotency key of this caller is called in Redis."""
    if idempotency_key is None:
        return None
    return hashlib.sha256(f"{caller.name}\n{idempotency_key}".encode()).hexdigest()


def _identified(body: object, guard: str | None) -> object:
    """Return a check's JSON with an id that follows from the idempotency key, unless it has one."""
    if guard and isinstance(body, dict) and body.get("check_id") is None:
        return {**body, "check_id": f"key-{guard[:48]}"}
    return body


def _invalid(error: ValidationError) -> ProblemError:
    faults = [
        {"field": ".".join(str(part) for part in fault["loc"]), "detail": fault["msg"]}
        for fault in error.errors(include_url=False, include_input=False)
    ]
    return ProblemError(422, "invalid_request", first_fault(error), faults=faults)


def _not_found() -> ProblemError:
    return ProblemError(
        404, "not_found", "No check with this id is known; one from the queue is once it began."
    )
