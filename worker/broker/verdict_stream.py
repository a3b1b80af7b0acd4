"""The verdict stream: each check's event is published once and consumed in groups."""

import zlib
from typing import Any, Self

import redis

from worker.broker import keys
from worker.broker.connection import connect
from worker.broker.event_stream import EventStream, StreamEvent, parsed
from worker.contract.messages import RejectionEvent, VerdictEvent, read_event
from worker.settings import Settings

# KEYS: record, stream, thumbnail, the check's attempts, unacked, its index; ARGV: the event, the record, the
# seconds that it lives, the thumbnail or nothing, the seconds that it lives, the field of the attempt that
# ends or nothing, the tag of the message that is acknowledged or nothing.
# XADD comes first: a server that refuses it, out of memory say, then keeps no record of an event that was not
# published.
_PUBLISH_ONCE = """
local id = false
if redis.call('EXISTS', KEYS[1]) == 0 then
  id = redis.call('XADD', KEYS[2], '*', 'event', ARGV[1])
  redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
  if ARGV[4] ~= '' then redis.call('SET', KEYS[3], ARGV[4], 'EX', ARGV[5]) end
end
if ARGV[6] ~= '' then redis.call('HDEL', KEYS[4], ARGV[6]) end
if ARGV[7] ~= '' then
  redis.call('ZREM', KEYS[6], ARGV[7])
  redis.call('HDEL', KEYS[5], ARGV[7])
end
return id
"""

# KEYS: record, stream; ARGV: the event, the record for this message, the message's part of it.
_PUBLISH_AGAIN = """
local record = redis.call('GET', KEYS[1])
if not record or string.sub(record, 1, #ARGV[3]) == ARGV[3] then return false end
local id = redis.call('XADD', KEYS[2], '*', 'event', ARGV[1])
redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL')
return id
"""

Event = StreamEvent[VerdictEvent | RejectionEvent]


class VerdictStream(EventStream[VerdictEvent | RejectionEvent]):
    """The stream of verdicts and rejections in one Redis database; safe for threads.

    A check's record remembers for `record_ttl_seconds` which message its event answered, and the event. A
    thumbnail that is not in the object store has a key of its own for `thumbnail_ttl_seconds`.
    """

    def __init__(
        self, client: redis.Redis, *, stream: str, record_ttl_seconds: int, thumbnail_ttl_seconds: int
    ) -> None:
        super().__init__(client, stream, read_event)
        self._record_ttl_seconds = record_ttl_seconds
        self._thumbnail_ttl_seconds = thumbnail_ttl_seconds
        self._publish_once = client.register_script(_PUBLISH_ONCE)

    @classmethod
    def connect(cls, settings: Settings, *, client: redis.Redis | None = None) -> Self:
        """Return the stream that the settings name, by default with connections of its own."""
        return cls(
            client or connect(settings.broker),
            stream=settings.verdict_stream,
            record_ttl_seconds=settings.publish_once_ttl_seconds,
            thumbnail_ttl_seconds=settings.thumbnail_ttl_seconds,
        )

    def publish(
        self,
        event: VerdictEvent | RejectionEvent,
        *,
        message_id: str,
        thumbnail: bytes | None = None,
        ending_attempt: str = "",
        acknowledging: str = "",
    ) -> bool:
        """Append the event unless its check has one already; return whether it was appended.

        `message_id` names the message that asked for the check. With the event ends the attempt at it whose
        field is `ending_attempt`, and the message with the tag `acknowledging` is acknowledged. Raises
        redis.RedisError when the server cannot be reached after retries.
        """
        text = event.model_dump_json()
        names = [
            keys.published(self._stream, event.data.check_id),
            self._stream,
            self.thumbnail_key(event.id),
            keys.attempts(event.data.check_id),
            keys.UNACKED,
            keys.UNACKED_INDEX,
        ]
        arguments: list[str | bytes | int] = [
            text,
            _record(message_id, text),
            self._record_ttl_seconds,
            thumbnail or b"",
            self._thumbnail_ttl_seconds,
            ending_attempt,
            acknowledging,
        ]
        return self._publish_once(keys=names, args=arguments) is not None

    def publish_again(self, check_id: str, message_id: str) -> bool | None:
        """Append a check's event again for a message that was submitted after it; None when it has no event.

        Returns False for the message that the event has answered: it was only delivered again. Raises
        redis.RedisError.
        """
        record: Any = self._redis.get(keys.published(self._stream, check_id))
        if record is None:
            return None
        text = zlib.decompress(record.partition(b"\n")[2]).decode()
        names = [keys.published(self._stream, check_id), self._stream]
        arguments: list[str | bytes] = [text, _record(message_id, text), f"{message_id}\n"]
        return self._redis.eval(_PUBLISH_AGAIN, len(names), *names, *arguments) is not None

    def event_of(self, check_id: str) -> Event | None:
        """Return a check's event, without an entry id, while its record lives; None when it has none.

        Raises redis.RedisError, and ValueError for an event that this version cannot read.
        """
        record: Any = self._redis.get(keys.published(self._stream, check_id))
        if record is None:
            return None
        raw = zlib.decompress(record.partition(b"\n")[2]).decode()
        return Event("", read_event(raw), raw)

    def thumbnail(self, event: Event) -> bytes | None:
        """Return an event's thumbnail from its key; None when it has none there, or no longer."""
        value: Any = self._redis.get(self.thumbnail_key(event.envelope.id))
        return None if value is None else bytes(value)

    def thumbnail_key(self, event_id: str) -> str:
        """Return the key of an event's thumbnail."""
        return keys.thumbnail(self._stream, event_id)


def _record(message_id: str, event: str) -> bytes:
    return f"{message_id}\n".encode() + zlib.compress(event.encode())


def parsed_event(entry_id: str, fields: dict[bytes, bytes]) -> Event | None:
    """Return the event of a stream's entry; None, and counted, for an entry that this version cannot read."""
    return parsed(entry_id, fields, read_event)
