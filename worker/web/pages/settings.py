"""Preferences of a person."""

from fastapi import APIRouter
from starlette.responses import Response

from worker.reviews.moderators import set_preferences
from worker.web.api.bodies import BoundedRoute
from worker.web.pages.frame import frame
from worker.web.pages.rendering import html
from worker.web.pages.review import Reader
from worker.web.preferences import Preferences
from worker.web.site import CurrentSite

router = APIRouter(include_in_schema=False, route_class=BoundedRoute)


@router.get("/preferences")
def preferences_page(site: CurrentSite, person: Reader) -> Response:
    """Show what the person has set."""
    with site.database.transaction() as tx:
        return html("preferences.html.j2", page=frame(tx, site, person, "/preferences"))


@router.put("/preferences")
def save_preferences(request: Preferences, site: CurrentSite, person: Reader) -> dict[str, str]:
    """Keep what the person sets."""
    with site.database.transaction() as tx:
        set_preferences(tx, site.moderators.of(tx, person), request.model_dump())
    return {"status": "saved"}
