"""Lists of reviews, with filters, and their export."""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, get_args
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field, field_validator
from starlette.responses import Response, StreamingResponse

from worker.reviews import audit, listing
from worker.web.identity import Person
from worker.web.pages.frame import frame
from worker.web.pages.rendering import html
from worker.web.pages.review import Reader, state_words
from worker.web.problems import ProblemError
from worker.web.site import CurrentSite, Site

router = APIRouter(include_in_schema=False)

_HEADINGS: dict[listing.View, str] = {
    "waiting": "Waiting",
    "mine": "Mine",
    "decided": "Decided",
    "appeals": "Appeals",
    "all": "All",
}
# What a spreadsheet would take for a formula; keys and metadata come from outside.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
# Of an item that waits for a blind decision, and of one that waits for an independent second one.
_SCORE = ("verdict", "score", "threshold_low", "threshold_high")
_FIRST_OPINION = ("outcome", "basis", "note", "moderator", "decided_at")


class ListQuery(BaseModel):
    """The filters of a list, as its address has them; empty ones are none."""

    model_config = ConfigDict(extra="ignore")

    list: listing.View = "waiting"
    search: str | None = Field(default=None, max_length=1024)
    state: listing.State | None = None
    score_from: float | None = Field(default=None, ge=0, le=1)
    score_to: float | None = Field(default=None, ge=0, le=1)
    #: Opened within so many days.
    days: float | None = Field(default=None, gt=0, le=36_500)
    policy: str | None = Field(default=None, max_length=64)
    model: str | None = Field(default=None, max_length=256)
    metadata_key: str | None = Field(default=None, max_length=256)
    metadata_value: str | None = Field(default=None, max_length=1024)
    #: Where the page begins: `next` of the one before.
    after: str | None = Field(default=None, max_length=256)

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if isinstance(value, str) and not value.strip() else value

    @field_validator("list", mode="before")
    @classmethod
    def _first_list(cls, value: object) -> object:
        return value or "waiting"

    def address(self, **changes: object) -> str:
        """Return the part of an address after its question mark, without empty filters."""
        values = {**self.model_dump(exclude={"after"}, exclude_none=True), **changes}
        return urlencode({name: value for name, value in values.items() if value is not None})

    def shown(self) -> dict[str, Any]:
        """Return every filter as its field shows it."""
        return {name: "" if value is None else value for name, value in self.model_dump().items()}


def filters(query: ListQuery, site: Site, person: Person) -> listing.Filters:
    """Return what a list shows to a person: nobody finds a blind item by its score."""
    with site.database.transaction() as tx:
        moderator = site.moderators.of(tx, person)
    by_score = query.score_from is not None or query.score_to is not None
    return listing.Filters(
        view=query.list,
        moderator=moderator.id,
        state=query.state,
        min_score=query.score_from,
        max_score=query.score_to,
        opened_from=datetime.now(UTC) - timedelta(days=query.days) if query.days else None,
        policy=query.policy,
        model=query.model,
        metadata_key=query.metadata_key,
        metadata_value=query.metadata_value if query.metadata_key else None,
        search=query.search,
        unblinded=True if by_score and person.may("moderator") else None,
    )


@dataclass(frozen=True)
class ShownItem:
    """A row of a list."""

    item: listing.Item
    #: What is withheld from this person.
    withheld: frozenset[str]

    @property
    def hidden(self) -> bool:
        """Whether score and verdict are withheld."""
        return "score" in self.withheld

    @property
    def outcome_hidden(self) -> bool:
        """Whether the decision is withheld."""
        return "outcome" in self.withheld

    @property
    def state_words(self) -> str:
        """The state in words."""
        return state_words(self.item)


def _list_query(query: Annotated[ListQuery, Query()]) -> ListQuery:
    return query


AskedList = Annotated[ListQuery, Depends(_list_query)]


@router.get("/items")
def items_page(site: CurrentSite, person: Reader, query: AskedList) -> Response:
    """Show a page of a list."""
    chosen = filters(query, site, person)
    with site.database.transaction() as tx:
        page = frame(tx, site, person, "/items")
        try:
            found = listing.page(tx, chosen, after=query.after)
        except ValueError as error:
            raise ProblemError(422, "invalid_request", "This page of the list does not exist.") from error
        choices = listing.choices(tx)
    following = f"/items?{query.address(after=found.next)}" if found.next else None
    return html(
        "items.html.j2",
        page=page,
        heading="Items",
        tabs=[
            {"label": label, "href": f"/items?{query.address(list=view)}", "current": view == query.list}
            for view, label in _HEADINGS.items()
        ],
        filters=query.shown(),
        choices=choices,
        states=get_args(listing.State),
        rows=[ShownItem(item, _withheld(item, person)) for item in found.items],
        query=query.address(),
        next_page=following,
    )


@router.get("/items.json")
def export_json(site: CurrentSite, person: Reader, query: AskedList) -> StreamingResponse:
    """Export every item of a list as a JSON array."""
    rows = _exported(site, person, query, "json")
    return _download(_json_array(rows), "application/json", "items.json")


@router.get("/items.csv")
def export_csv(site: CurrentSite, person: Reader, query: AskedList) -> StreamingResponse:
    """Export every item of a list as CSV; metadata is one column, as JSON."""
    rows = _exported(site, person, query, "csv")
    return _download(_csv_lines(rows), "text/csv; charset=utf-8", "items.csv")


def _withheld(item: listing.Item, person: Person) -> frozenset[str]:
    """Return the fields that a person who may decide an item must not know before."""
    if item.state != "waiting" or not person.may("moderator"):
        return frozenset()
    names = _SCORE if item.origin == "audit" and item.purpose != "appeal" else ()
    return frozenset((*names, *(_FIRST_OPINION if item.purpose == "second_opinion" else ())))


def _exported(site: Site, person: Person, query: ListQuery, form: str) -> Iterator[dict[str, Any]]:
    chosen = filters(query, site, person)
    with site.database.transaction() as tx:
        moderator = site.moderators.of(tx, person)
        detail = {"form": form, **query.model_dump(exclude={"after"}, exclude_none=True)}
        audit.record(tx, str(moderator.id), "items_exported", query.list, detail)
    for item in listing.export(site.database, chosen):
        row = asdict(item)
        del row["blind"], row["claimed_by"]
        yield {**row, **dict.fromkeys(_withheld(item, person))}


def _json_array(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    separator = "[\n"
    for row in rows:
        yield separator + json.dumps(row, default=_plain, ensure_ascii=False)
        separator = ",\n"
    yield "[]\n" if separator == "[\n" else "\n]\n"


def _csv_lines(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    line = io.StringIO()
    writer = csv.writer(line)
    for number, row in enumerate(rows):
        if not number:
            writer.writerow(row)
        writer.writerow(_cell(value) for value in row.values())
        yield line.getvalue()
        line.seek(0)
        line.truncate()


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(_plain(value))
    return f"'{text}" if text.startswith(_FORMULA) else text


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _download(parts: Iterator[str], kind: str, name: str) -> StreamingResponse:
    return StreamingResponse(
        parts, media_type=kind, headers={"Content-Disposition": f'attachment; filename="{name}"'}
    )
