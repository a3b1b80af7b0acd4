"""Verdicts from the stream into the database, and from there to webhooks."""

import socket
from collections.abc import Generator, Sequence

import psycopg

from worker.broker.verdict_stream import Event, VerdictStream
from worker.database.database import Database
from worker.reviews.intake import Stored, sampling_key, store, take_turn
from worker.settings import ReviewSettings
from worker.telemetry.logs import get_logger
from worker.telemetry.relay_metrics import RELAY_EVENTS, RELAY_REVIEWS
from worker.webhooks import deliveries

log = get_logger(__name__)

#: The relay's consumer group on the verdict stream.
GROUP = "relay"

_BATCH = 100
_BLOCK_SECONDS = 1.0


class Intake:
    """Reads the verdict stream as a member of the group `relay`; an event is acknowledged once committed.

    Webhooks are enqueued in the same transaction.
    """

    def __init__(self, stream: VerdictStream, database: Database, settings: ReviewSettings) -> None:
        self._stream = stream
        self._database = database
        self._settings = settings
        self._batches: Generator[list[Event]] | None = None
        self._key = b""

    def turn(self) -> float:
        """Store the next events; return the seconds until the next turn."""
        if self._batches is None:
            self._batches = self._stream.batches(
                GROUP, socket.gethostname(), size=_BATCH, block_seconds=_BLOCK_SECONDS
            )
        if events := next(self._batches):
            try:
                self._store(events)
            except psycopg.DataError:
                # One of them is at fault: the others are stored without it.
                for event in events:
                    self._store_alone(event)
            self._stream.acknowledge(GROUP, *events)
        return 0

    def failed(self) -> None:
        """Read what is pending again, at the next turn."""
        self._batches = None

    def _store(self, events: Sequence[Event]) -> None:
        stored: list[Stored] = []
        with self._database.transaction() as tx:
            take_turn(tx)
            if not self._key:
                self._key = sampling_key(tx)
            for event in events:
                stored.append(store(tx, self._settings, event.envelope, event.raw, key=self._key))
                deliveries.enqueue(tx, event.envelope.id, event.envelope.type, event.raw)
        for event, outcome in zip(events, stored, strict=True):
            RELAY_EVENTS.labels("stored").inc()
            if outcome.review_id is not None:
                RELAY_REVIEWS.labels(str(outcome.origin), "opened").inc()
            elif outcome.capped:
                RELAY_REVIEWS.labels(str(outcome.origin), "capped").inc()
                log.warning("review_capped", check_id=event.check_id, origin=outcome.origin)

    def _store_alone(self, event: Event) -> None:
        try:
            self._store([event])
        except psycopg.DataError as error:
            RELAY_EVENTS.labels("unstorable").inc()
            log.error(  # noqa: TRY400 - the fault is the event's
                "event_unstorable", check_id=event.check_id, entry_id=event.entry_id, error=str(error)[:200]
            )
