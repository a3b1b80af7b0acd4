"""The endpoints of webhooks, for admins; what the page does to them goes over the HTTP API."""

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.responses import Response

from worker.web.identity import Person
from worker.web.pages.frame import frame
from worker.web.pages.rendering import html
from worker.web.site import CurrentSite, require
from worker.webhooks import endpoints

router = APIRouter(include_in_schema=False)


@router.get("/webhooks")
def webhooks_page(site: CurrentSite, person: Annotated[Person, Depends(require("admin"))]) -> Response:
    """Show the endpoints."""
    with site.database.transaction() as tx:
        page = frame(tx, site, person, "/webhooks")
        found = endpoints.endpoints(tx)
    return html("webhooks.html.j2", page=page, endpoints=found, event_types=endpoints.EVENT_TYPES)
