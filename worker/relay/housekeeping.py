"""What the relay removes: acknowledged decisions, published events, checks past their retention."""

from worker.broker.decision_stream import DecisionStream
from worker.database.database import Database
from worker.reviews import outbox
from worker.settings import Settings
from worker.telemetry.logs import get_logger

log = get_logger(__name__)

_PAUSE_SECONDS = 30.0
# Deleted in parts, so that no transaction is long.
_BATCH = 5000


class Housekeeping:
    """Trims the decision stream and the tables that only grow."""

    def __init__(self, stream: DecisionStream, database: Database, settings: Settings) -> None:
        self._stream = stream
        self._database = database
        self._settings = settings

    def turn(self) -> float:
        """Remove what has expired; return the seconds until the next turn."""
        self._stream.trim(
            min_age_seconds=self._settings.verdict_min_age_seconds,
            retention_seconds=self._settings.verdict_retention_seconds,
            spare_length=max(1, self._settings.verdict_stream_max_length * 3 // 4),
        )
        with self._database.transaction() as tx:
            outbox.forget(tx, older_than_seconds=self._settings.verdict_retention_seconds)
            checks = tx.execute(
                "DELETE FROM checks WHERE check_id IN (SELECT check_id FROM checks"
                " WHERE occurred_at < now() - %s * interval '1 second' LIMIT %s FOR UPDATE SKIP LOCKED)",
                [self._settings.review_check_retention_seconds, _BATCH],
            ).rowcount
        return 0 if checks == _BATCH else _PAUSE_SECONDS
