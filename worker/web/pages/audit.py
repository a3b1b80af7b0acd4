"""The audit, for who may read all."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Query
from starlette.responses import Response

from worker.reviews import audit
from worker.web.identity import Person
from worker.web.pages.frame import frame
from worker.web.pages.rendering import html
from worker.web.site import CurrentSite, require

router = APIRouter(include_in_schema=False)

_PAGE = 100


@router.get("/audit")
def audit_page(
    site: CurrentSite,
    person: Annotated[Person, Depends(require("auditor", "admin"))],
    before: Annotated[int | None, Query(ge=1)] = None,
) -> Response:
    """Show a page of the audit."""
    with site.database.transaction() as tx:
        page = frame(tx, site, person, "/audit")
        found = audit.records(tx, before=before, limit=_PAGE)
    following = f"/audit?before={found[-1].number}" if len(found) == _PAGE else None
    return html("audit.html.j2", page=page, records=[_row(record) for record in found], next_page=following)


def _row(record: audit.Record) -> dict[str, Any]:
    return {
        "number": record.number,
        "at": record.at,
        "who": record.name or record.actor,
        "action": record.action.replace("_", " "),
        "subject": record.subject,
        "review": record.subject if _is_uuid(record.subject) and "review" in record.action else None,
        "detail": record.detail,
    }


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True
