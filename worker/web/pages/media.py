"""What a page loads beside its text: pictures, features, files, live updates."""

import asyncio
import hashlib
import json
import mimetypes
import time
from collections.abc import AsyncIterator
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response, StreamingResponse

from worker.broker.verdict_stream import Event
from worker.reviews import details
from worker.web.identity import SESSION_COOKIE, Person
from worker.web.pages.rendering import STATIC
from worker.web.pages.review import Reader, withheld
from worker.web.pictures import Part, PictureError
from worker.web.problems import ProblemError
from worker.web.site import CurrentSite, require

router = APIRouter(include_in_schema=False)

_FILES = frozenset(path.name for path in STATIC.iterdir() if path.is_file())
_ALIVE_SECONDS = 15.0
# A page connects again after it, so that whoever has left is not told for ever.
_LIVE_SECONDS = 1800.0


@router.get("/reviews/{review_id}/picture")
def picture(review_id: UUID, site: CurrentSite, person: Reader, part: Part = "overview") -> Response:
    """Return the judged picture: an overview, its native pixels, or the strongest view."""
    with site.database.transaction() as tx:
        shown = details.review(tx, review_id)
    if part == "strongest" and withheld(shown, person):
        raise _withheld()
    try:
        rendered = site.pictures.render(shown.event, part)
    except PictureError as error:
        raise ProblemError(409, error.reason, str(error)) from error
    return Response(
        rendered.data, media_type=rendered.media_type, headers={"X-Picture-SHA256": rendered.sha256}
    )


@router.get("/reviews/{review_id}/feature")
def feature(review_id: UUID, site: CurrentSite, person: Reader) -> Response:
    """Return the noise feature of the strongest view."""
    with site.database.transaction() as tx:
        shown = details.review(tx, review_id)
    if withheld(shown, person):
        raise _withheld()
    thumbnail = shown.event.data.thumbnail
    data = site.client.thumbnail(Event(entry_id="", envelope=shown.event, raw=""))
    if data is None or hashlib.sha256(data).hexdigest() != thumbnail.sha256:
        raise ProblemError(404, "not_found", "The picture of the feature has expired.")
    return Response(data, media_type=thumbnail.content_type)


def _withheld() -> ProblemError:
    return ProblemError(403, "withheld", "Hidden until the item is decided.")


@router.get("/static/{name}")
def static_file(name: str) -> Response:
    """Return a file of the page."""
    if name not in _FILES:
        raise ProblemError(404, "not_found", "There is no such file.")
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    # Its address changes with its content.
    headers = {"Cache-Control": "public, max-age=31536000, immutable"}
    return Response((STATIC / name).read_bytes(), media_type=kind, headers=headers)


@router.get("/live")
async def live(
    request: Request,
    site: CurrentSite,
    _: Annotated[Person, Depends(require("moderator", "senior", "auditor", "admin"))],
    review: UUID | Literal["all", "none"] = "none",
) -> StreamingResponse:
    """Tell what waits, and what changes in the review that a page shows, as server-sent events."""

    async def events() -> AsyncIterator[str]:
        ends = time.monotonic() + _LIVE_SECONDS
        async with site.live.subscribed(review) as updates:
            yield "retry: 1000\n\n"
            while time.monotonic() < ends and not await request.is_disconnected():
                try:
                    update = await asyncio.wait_for(updates.get(), _ALIVE_SECONDS)
                except TimeoutError:
                    yield ": alive\n\n"
                    continue
                data = json.dumps({"html": update.data}) if update.event == "counts" else update.data or "{}"
                yield f"event: {update.event}\ndata: {data}\n\n"

    # Proxies must not collect what is told now.
    return StreamingResponse(events(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


@router.get("/link")
def one_time_link(secret: str, site: CurrentSite) -> Response:
    """Let the browser that opens a one-time link in."""
    session = site.links.open(secret) if site.links else None
    if session is None:
        raise ProblemError(403, "link_used", "This link was used already, or is not one of this process.")
    reply = Response(status_code=303, headers={"Location": "/"})
    reply.set_cookie(SESSION_COOKIE, session, httponly=True, samesite="strict")
    return reply
