"""Lists of reviews: filters, search, pages, export, and the history of one."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from worker.contract.messages import DecisionOutcome, ReviewOrigin
from worker.database.database import Database, Transaction
from worker.reviews.queue import Purpose

View = Literal["waiting", "mine", "decided", "appeals", "all"]
State = Literal["waiting", "decided", "closed"]

PAGE_SIZE = 50
_EXPORT_SIZE = 1000


@dataclass(frozen=True)
class Filters:
    """What a list shows; None: whatever it is."""

    view: View = "all"
    #: Whose reviews `mine` shows: held now, or decided.
    moderator: UUID | None = None
    state: State | None = None
    origin: ReviewOrigin | None = None
    outcome: DecisionOutcome | None = None
    verdict: str | None = None
    #: Band of the score, 0..1, both ends included.
    min_score: float | None = None
    max_score: float | None = None
    opened_from: datetime | None = None
    opened_before: datetime | None = None
    policy: str | None = None
    model: str | None = None
    #: A key that the metadata has, and with `metadata_value` its value as text.
    metadata_key: str | None = None
    metadata_value: str | None = None
    #: A check id, a part of an object's key, or the SHA-256 of its bytes.
    search: str | None = None
    #: True leaves out what still waits for a blind decision: a filter by score would tell it.
    unblinded: bool | None = None


@dataclass(frozen=True)
class Item:
    """One review in a list."""

    id: UUID
    check_id: str
    state: State
    purpose: Purpose
    origin: ReviewOrigin
    needs_senior: bool
    closed_reason: str | None
    #: Of the decision in force; 0 and None before the first.
    revision: int
    outcome: DecisionOutcome | None
    basis: str | None
    note: str | None
    #: The pseudonym of whoever decided.
    moderator: UUID | None
    decided_at: datetime | None
    bucket: str
    key: str
    sha256: str
    verdict: str
    score: float
    threshold_low: float
    threshold_high: float
    sampling_probability: float | None
    model: str
    policy: str
    metadata: Mapping[str, Any]
    occurred_at: datetime
    opened_at: datetime
    due_at: datetime
    overdue: bool
    #: Whoever holds it now.
    claimed_by: UUID | None
    #: Whether score and feature are hidden from whoever has not decided it.
    blind: bool


@dataclass(frozen=True)
class Page:
    """A part of a list, and where the next one begins."""

    items: list[Item]
    #: For `page`'s `after`; None at the end.
    next: str | None


_ITEM = sql.SQL("""
SELECT reviews.id, reviews.check_id, state, reviews.purpose, origin, reviews.needs_senior, closed_reason,
  reviews.revision, reviews.outcome, decisions.basis, decisions.note, decisions.moderator_id AS moderator,
  reviews.decided_at, bucket, key, sha256, verdict, score, threshold_low, threshold_high,
  sampling_probability, model, policy, metadata, occurred_at, opened_at, due_at,
  state = 'waiting' AND due_at <= now() AS overdue,
  CASE WHEN claimed_until > now() THEN claimed_by END AS claimed_by,
  origin = 'audit' AND reviews.revision = 0 AND reviews.purpose <> 'appeal' AS blind,
  {keys}
FROM reviews LEFT JOIN decisions ON decisions.id = reviews.decision_id
WHERE {conditions} ORDER BY {order} LIMIT %(limit)s
""")


@dataclass(frozen=True)
class _Order:
    """The order of a list: by these expressions, then by id; `{column: type}`."""

    by: Mapping[str, str]
    descending: bool = False

    def keys(self) -> sql.Composed:
        """Return the expressions as columns."""
        return sql.SQL(", ").join(
            sql.SQL("{} AS {}").format(sql.SQL(each), sql.Identifier(f"key_{number}"))
            for number, each in enumerate(self.by)
        )

    def order(self) -> sql.Composed:
        """Return what stands after ORDER BY; the newest first has an index."""
        direction = sql.SQL(" DESC" if self.descending else "")
        return sql.SQL(", ").join(sql.SQL(each) + direction for each in (*self.by, "reviews.id"))

    def after(self) -> sql.Composed:
        """Return the condition for what comes after the row of a cursor."""
        return sql.SQL("({}, reviews.id) {} ({}, %(after)s::uuid)").format(
            sql.SQL(", ").join(map(sql.SQL, self.by)),
            sql.SQL("<" if self.descending else ">"),
            sql.SQL(", ").join(
                sql.SQL("{}::{}").format(sql.Placeholder(f"key_{number}"), sql.SQL(kind))
                for number, kind in enumerate(self.by.values())
            ),
        )


# As the queue orders what waits: appeals, overdue, nearest to a threshold.
_OVERDUE = "due_at <= %(at)s::timestamptz"
_QUEUED = _Order(
    {
        f"CASE WHEN reviews.purpose = 'appeal' THEN 0 WHEN {_OVERDUE} THEN 1 ELSE 2 END": "int",
        "CASE WHEN reviews.purpose = 'appeal' THEN extract(epoch FROM opened_at)"
        f" WHEN {_OVERDUE} THEN extract(epoch FROM due_at) ELSE distance END::float8": "float8",
    }
)
_NEWEST_FIRST = _Order({"coalesce(reviews.decided_at, opened_at)": "timestamptz"}, descending=True)
_OLDEST_FIRST = _Order({"opened_at": "timestamptz"})

_VIEWS: dict[View, str] = {
    "waiting": "state = 'waiting' AND available_at <= now()",
    "mine": "reviews.id IN (SELECT held.id FROM reviews AS held"
    " WHERE held.claimed_by = %(moderator)s AND held.claimed_until > now()"
    " UNION SELECT own.review_id FROM decisions AS own"
    " WHERE own.moderator_id = %(moderator)s AND own.undone_at IS NULL)",
    "decided": "reviews.outcome IS NOT NULL",
    "appeals": "EXISTS (SELECT 1 FROM appeals WHERE appeals.review_id = reviews.id)",
    "all": "true",
}
_FILTERS = {
    "state": "state = %(state)s",
    "origin": "origin = %(origin)s",
    "outcome": "reviews.outcome = %(outcome)s",
    "verdict": "verdict = %(verdict)s",
    "min_score": "score >= %(min_score)s",
    "max_score": "score <= %(max_score)s",
    "opened_from": "opened_at >= %(opened_from)s",
    "opened_before": "opened_at < %(opened_before)s",
    "policy": "policy = %(policy)s",
    "model": "model = %(model)s",
    "metadata_key": "metadata ? %(metadata_key)s",
    "metadata_value": "(metadata @> %(metadata_text)s OR metadata @> %(metadata_json)s)",
    "unblinded": "NOT (state = 'waiting' AND origin = 'audit' AND reviews.purpose <> 'appeal')",
    "search": "(reviews.check_id = %(search)s OR sha256 = %(search)s OR strpos(key, %(search)s) > 0)",
}


def page(tx: Transaction, filters: Filters, *, after: str | None = None, size: int = PAGE_SIZE) -> Page:
    """Return a page of a list: what waits in the order of the queue, everything else newest first.

    `after` is the `next` of the page before. Raises ValueError for one that is none.
    """
    waiting = filters.view == "waiting"
    return _page(tx, filters, _QUEUED if waiting else _NEWEST_FIRST, after=after, size=size)


def export(database: Database, filters: Filters) -> Iterator[Item]:
    """Yield every review that the filters let through, oldest first, without a limit.

    Each thousand has a transaction of its own, so that a slow reader holds none open.
    """
    after: str | None = None
    while True:
        with database.transaction() as tx:
            part = _page(tx, filters, _OLDEST_FIRST, after=after, size=_EXPORT_SIZE)
        yield from part.items
        if (after := part.next) is None:
            return


def count(tx: Transaction, filters: Filters) -> int:
    """Return how many reviews the filters let through."""
    query = sql.SQL("SELECT count(*) AS reviews FROM reviews WHERE {}").format(_conditions(filters))
    row = tx.execute(query, _values(filters)).fetchone()
    return int(row["reviews"]) if row else 0


def find(tx: Transaction, *, review_id: UUID | None = None, check_id: str | None = None) -> Item | None:
    """Return one review by its id or its check."""
    query = _ITEM.format(
        keys=_OLDEST_FIRST.keys(),
        order=_OLDEST_FIRST.order(),
        conditions=sql.SQL("(reviews.id = %(review)s OR reviews.check_id = %(check)s)"),
    )
    row = tx.execute(query, {"review": review_id, "check": check_id, "limit": 1}).fetchone()
    return None if row is None else _item(row)


def choices(tx: Transaction) -> dict[str, list[str]]:
    """Return the policies, models and metadata keys of the newest 5,000 reviews, for a page's filters."""
    row = tx.execute(
        "WITH newest AS MATERIALIZED ("
        "  SELECT policy, model, metadata FROM reviews ORDER BY opened_at DESC, id DESC LIMIT 5000)"
        " SELECT (SELECT array_agg(DISTINCT policy ORDER BY policy) FROM newest) AS policies,"
        " (SELECT array_agg(DISTINCT model ORDER BY model) FROM newest) AS models,"
        " (SELECT array_agg(name) FROM (SELECT DISTINCT jsonb_object_keys(metadata) AS name FROM newest"
        "  ORDER BY name LIMIT 100) AS names) AS metadata_keys"
    ).fetchone()
    return {name: list(values or []) for name, values in (row or {}).items()}


@dataclass(frozen=True)
class PastDecision:
    """One decision in the history of a review, undone ones too."""

    id: UUID
    review_id: UUID
    check_id: str
    revision: int
    outcome: DecisionOutcome
    basis: str
    note: str
    purpose: Purpose
    blind: bool
    second_opinion: bool
    seconds: float
    #: The pseudonym, and the name for people of the house.
    moderator: UUID
    name: str
    decided_at: datetime
    publish_at: datetime
    undone_at: datetime | None
    supersedes: UUID | None
    appeal_id: UUID | None


@dataclass(frozen=True)
class PastAppeal:
    """One appeal in the history of a review."""

    id: UUID
    reason: str
    appellant: str
    opened_at: datetime
    decided_at: datetime | None


_PAST = """
SELECT decisions.id, review_id, check_id, decisions.revision, decisions.outcome, basis, note,
  decisions.purpose, blind, second_opinion, seconds, moderator_id AS moderator, name, decisions.decided_at,
  publish_at, undone_at, supersedes, appeal_id
FROM decisions JOIN moderators ON moderators.id = moderator_id JOIN reviews ON reviews.id = review_id
"""


def decisions(tx: Transaction, review_id: UUID) -> list[PastDecision]:
    """Return the decisions of a review, oldest first."""
    query = sql.SQL(_PAST) + sql.SQL("WHERE review_id = %s ORDER BY decisions.decided_at")
    return [PastDecision(**row) for row in tx.execute(query, [review_id])]


def same_bytes(tx: Transaction, sha256: str, *, other_than: UUID, limit: int = 20) -> list[PastDecision]:
    """Return the decisions in force on other checks of the same bytes, newest first."""
    query = sql.SQL(_PAST) + sql.SQL(
        "WHERE reviews.sha256 = %s AND review_id <> %s AND decisions.id = reviews.decision_id"
        " ORDER BY decisions.decided_at DESC LIMIT %s"
    )
    return [PastDecision(**row) for row in tx.execute(query, [sha256, other_than, limit])]


def appeals(tx: Transaction, review_id: UUID) -> list[PastAppeal]:
    """Return the appeals of a review, oldest first."""
    rows = tx.execute(
        "SELECT id, reason, appellant, opened_at, decided_at FROM appeals WHERE review_id = %s"
        " ORDER BY opened_at",
        [review_id],
    )
    return [PastAppeal(**row) for row in rows]


def _page(tx: Transaction, filters: Filters, order: _Order, *, after: str | None, size: int) -> Page:
    conditions: sql.Composable = _conditions(filters)
    values = _values(filters)
    if after is None:
        now = tx.execute("SELECT now() AS at").fetchone()
        values["at"] = now and now["at"].isoformat()
    else:
        # The moment against which `overdue` was decided, the last row's place, and its id.
        parts = after.split("~")
        if len(parts) != len(order.by) + 2:
            raise ValueError("no cursor of this list")
        at, *keys, last_id = parts
        values |= {"at": at, "after": str(UUID(last_id))}
        values |= {f"key_{number}": key for number, key in enumerate(keys)}
        conditions += sql.SQL(" AND {}").format(order.after())
    values["limit"] = size + 1
    query = _ITEM.format(keys=order.keys(), order=order.order(), conditions=conditions)
    try:
        rows = tx.execute(query, values).fetchall()
    except psycopg.DataError as error:
        raise ValueError("no cursor of this list") from error
    following = None
    if len(rows) > size:
        last = rows[size - 1]
        keys = [_text(last[f"key_{number}"]) for number in range(len(order.by))]
        following = "~".join([values["at"], *keys, str(last["id"])])
    return Page([_item(row) for row in rows[:size]], following)


def _text(key: object) -> str:
    return key.isoformat() if isinstance(key, datetime) else repr(key)


def _item(row: dict[str, Any]) -> Item:
    return Item(**{field.name: row[field.name] for field in fields(Item)})


def _conditions(filters: Filters) -> sql.Composed:
    chosen = [_VIEWS[filters.view]]
    chosen += [text for name, text in _FILTERS.items() if getattr(filters, name) is not None]
    return sql.SQL(" AND ").join(map(sql.SQL, chosen))


def _values(filters: Filters) -> dict[str, Any]:
    values = {field.name: getattr(filters, field.name) for field in fields(filters)}
    if filters.metadata_value is not None:
        # A value is looked for as text and as what it means in JSON: 7 is a number too.
        values["metadata_text"] = Jsonb({filters.metadata_key: filters.metadata_value})
        values["metadata_json"] = Jsonb({filters.metadata_key: _as_json(filters.metadata_value)})
    return values


def _as_json(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text
