"""Decisions from the database onto their stream, and to webhooks."""

from worker.broker.decision_stream import DecisionStream
from worker.contract.messages import DECISION_TYPE
from worker.database.database import Database
from worker.reviews import outbox
from worker.telemetry.logs import get_logger
from worker.telemetry.relay_metrics import RELAY_DECISIONS
from worker.webhooks import deliveries

log = get_logger(__name__)

_BATCH = 100
_PAUSE_SECONDS = 0.5


class Outlet:
    """Publishes the decisions whose undo has ended, each once, and enqueues their webhooks."""

    def __init__(self, stream: DecisionStream, database: Database) -> None:
        self._stream = stream
        self._database = database
        self._full = False

    def turn(self) -> float:
        """Publish what is due; return the seconds until the next turn."""
        with self._database.transaction() as tx:
            events = outbox.due(tx, limit=_BATCH)
            done = self._stream.publish([(event.event_id, event.event) for event in events])
            outbox.mark(tx, events[:done])
            first = [event for event in events[:done] if not event.published]
            for event in first:
                deliveries.enqueue(tx, event.event_id, DECISION_TYPE, event.event)
        RELAY_DECISIONS.inc(len(first))
        full = done < len(events)
        if full and not self._full:
            log.error("decision_stream_full", remedy="a consumer group does not acknowledge its decisions")
        self._full = full
        return 0 if done == _BATCH else _PAUSE_SECONDS
