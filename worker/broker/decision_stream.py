"""The decision stream: each decision of a person is published once and consumed in groups."""

from collections.abc import Sequence
from typing import Any, Self

import redis

from worker.broker import keys
from worker.broker.connection import connect
from worker.broker.event_stream import EventStream, StreamEvent
from worker.contract.messages import DecisionEvent, read_decision
from worker.settings import Settings

# KEYS: stream, then the mark of each event; ARGV: the seconds that a mark lives, the most entries of the
# stream, then the events. XADD comes first, as for verdicts. Returns how many events are on the stream.
_PUBLISH = """
for i = 2, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 0 then
    if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[2]) then return i - 2 end
    redis.call('XADD', KEYS[1], '*', 'event', ARGV[i + 1])
    redis.call('SET', KEYS[i], '1', 'EX', ARGV[1])
  end
end
return #KEYS - 1
"""

Decided = StreamEvent[DecisionEvent]


class DecisionStream(EventStream[DecisionEvent]):
    """The stream of decisions in one Redis database; safe for threads."""

    def __init__(self, client: redis.Redis, *, stream: str, max_length: int, mark_ttl_seconds: int) -> None:
        super().__init__(client, stream, read_decision)
        self._max_length = max_length
        self._mark_ttl_seconds = mark_ttl_seconds
        self._publish = client.register_script(_PUBLISH)

    @classmethod
    def connect(cls, settings: Settings, *, client: redis.Redis | None = None) -> Self:
        """Return the stream that the settings name, by default with connections of its own."""
        return cls(
            client or connect(settings.broker, within_seconds=10),
            stream=settings.decision_stream,
            max_length=settings.verdict_stream_max_length,
            mark_ttl_seconds=settings.publish_once_ttl_seconds,
        )

    def publish(self, events: Sequence[tuple[str, str]]) -> int:
        """Append events, each an id and its text, that are not on the stream; return how many are there now.

        That is all of them, or those before the first for which the stream is full. Raises redis.RedisError:
        then publish all of them again.
        """
        if not events:
            return 0
        marks = [keys.published(self._stream, event_id) for event_id, _ in events]
        texts = [text for _, text in events]
        done: Any = self._publish(
            keys=[self._stream, *marks], args=[self._mark_ttl_seconds, self._max_length, *texts]
        )
        return int(done)
