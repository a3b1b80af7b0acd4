"""What was published of a check: its newest event, and the decisions whose undo has ended."""

from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import UUID

from worker.contract.messages import DecisionEvent
from worker.database.database import Database, Transaction
from worker.reviews.decisions import decision_event
from worker.settings import ReviewSettings

_PART = 500
_FIRST = (datetime.min.replace(tzinfo=UTC), UUID(int=0))


def event_text(tx: Transaction, check_id: str) -> str | None:
    """Return the text of a check's newest event; None where the database has none."""
    row = tx.execute("SELECT event FROM checks WHERE check_id = %s", [check_id]).fetchone()
    return None if row is None else str(row["event"])


def latest_decision(tx: Transaction, settings: ReviewSettings, check_id: str) -> DecisionEvent | None:
    """Return the event of the newest published decision on a check."""
    review = tx.execute("SELECT * FROM reviews WHERE check_id = %s", [check_id]).fetchone()
    if review is None:
        return None
    decision = tx.execute(
        "SELECT * FROM decisions WHERE review_id = %s AND undone_at IS NULL AND NOT second_opinion"
        " AND publish_at <= now() ORDER BY revision DESC LIMIT 1",
        [review["id"]],
    ).fetchone()
    return None if decision is None else decision_event(settings, review, decision)


def published_decisions(database: Database, settings: ReviewSettings) -> Iterator[DecisionEvent]:
    """Yield the events of all published decisions, oldest first, without a limit.

    Each part has a transaction of its own, so that a slow reader holds none open.
    """
    after = _FIRST
    while True:
        with database.transaction() as tx:
            decisions = tx.execute(
                "SELECT * FROM decisions WHERE undone_at IS NULL AND NOT second_opinion"
                " AND publish_at <= now() AND (decided_at, id) > (%s, %s) ORDER BY decided_at, id LIMIT %s",
                [*after, _PART],
            ).fetchall()
            rows = tx.execute(
                "SELECT * FROM reviews WHERE id = ANY (%s)", [[row["review_id"] for row in decisions]]
            ).fetchall()
        reviews = {row["id"]: row for row in rows}
        for row in decisions:
            yield decision_event(settings, reviews[row["review_id"]], row)
        if len(decisions) < _PART:
            return
        after = (decisions[-1]["decided_at"], decisions[-1]["id"])
