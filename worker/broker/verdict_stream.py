"""The verdict stream: each check's event is published once and consumed in groups."""

import zlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Self

import redis

from worker.broker import keys
from worker.broker.connection import connect
from worker.contract.messages import RejectionEvent, UnknownEventTypeError, VerdictEvent, read_event
from worker.settings import Settings
from worker.telemetry.logs import get_logger
from worker.telemetry.metrics import ENTRIES_SKIPPED

log = get_logger(__name__)

# KEYS: record, stream, thumbnail; ARGV: the event, the record, the seconds that it lives, the thumbnail or
# nothing, the seconds that it lives. XADD comes first: a server that refuses it, out of memory say, then
# keeps no record of an event that was not published.
_PUBLISH_ONCE = """
if redis.call('EXISTS', KEYS[1]) == 1 then return false end
local id = redis.call('XADD', KEYS[2], '*', 'event', ARGV[1])
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
if ARGV[4] ~= '' then redis.call('SET', KEYS[3], ARGV[4], 'EX', ARGV[5]) end
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

# KEYS: stream; ARGV: the seconds for which every event stays, those after which none does, and the length
# from which young events go too. What a group has not acknowledged stays. Returns the groups that lose
# events.
_TRIM = """
if redis.call('EXISTS', KEYS[1]) == 0 then return {} end
local now = tonumber(redis.call('TIME')[1]) * 1000
local last, oldest = now - tonumber(ARGV[1]) * 1000, now - tonumber(ARGV[2]) * 1000
local acknowledged, losing = now, {}
local groups = redis.call('XINFO', 'GROUPS', KEYS[1])
for _, group in ipairs(groups) do
  local facts = {}
  for i = 1, #group, 2 do facts[group[i]] = group[i + 1] end
  local pending = redis.call('XPENDING', KEYS[1], facts['name'])
  local position = pending[1] > 0 and pending[2] or facts['last-delivered-id']
  local reached = tonumber(string.match(position, '^%d+'))
  if reached < acknowledged then acknowledged = reached end
  if reached < oldest then
    local from = pending[1] > 0 and position or '(' .. position
    local first = redis.call('XRANGE', KEYS[1], from, string.format('%.0f', oldest), 'COUNT', 1)
    if #first > 0 then losing[#losing + 1] = facts['name'] end
  end
end
redis.call('XTRIM', KEYS[1], 'MINID', string.format('%.0f', math.max(oldest, math.min(last, acknowledged))))
if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[3]) then
  if #groups > 0 then redis.call('XTRIM', KEYS[1], 'MINID', string.format('%.0f', acknowledged))
  else redis.call('XTRIM', KEYS[1], 'MAXLEN', ARGV[3]) end
end
return losing
"""


@dataclass(frozen=True)
class Event:
    """One entry of the verdict stream."""

    #: Its id on the stream.
    entry_id: str
    #: The parsed CloudEvent.
    envelope: VerdictEvent | RejectionEvent
    #: The CloudEvent's JSON as published.
    raw: str

    @property
    def check_id(self) -> str:
        """The check that the event answers."""
        return self.envelope.data.check_id


class VerdictStream:
    """The stream of verdicts and rejections in one Redis database; safe for threads.

    A check's record remembers for `record_ttl_seconds` which message its event answered, and the event. A
    thumbnail that is not in the object store has a key of its own for `thumbnail_ttl_seconds`.
    """

    def __init__(
        self, client: redis.Redis, *, stream: str, record_ttl_seconds: int, thumbnail_ttl_seconds: int
    ) -> None:
        self._redis = client
        self._stream = stream
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
        self, event: VerdictEvent | RejectionEvent, *, message_id: str, thumbnail: bytes | None = None
    ) -> bool:
        """Append the event unless its check has one already; return whether it was appended.

        `message_id` names the message that asked for the check. Raises redis.RedisError when the server
        cannot be reached after retries.
        """
        text = event.model_dump_json()
        names = [
            keys.published(self._stream, event.data.check_id),
            self._stream,
            self.thumbnail_key(event.id),
        ]
        arguments: list[str | bytes | int] = [
            text,
            _record(message_id, text),
            self._record_ttl_seconds,
            thumbnail or b"",
            self._thumbnail_ttl_seconds,
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

    def trim(self, *, min_age_seconds: int, retention_seconds: int, spare_length: int) -> None:
        """Delete the events that are older than `min_age_seconds` and acknowledged by every group.

        From `spare_length` events on, younger ones that every group has acknowledged are deleted too. After
        `retention_seconds` an event is deleted in any case; a group that loses one is named in the log.
        Raises redis.RedisError.
        """
        losing = self._redis.eval(_TRIM, 1, self._stream, min_age_seconds, retention_seconds, spare_length)
        for group in losing:
            log.error("events_given_up", group=_text(group), retention_seconds=retention_seconds)

    def thumbnail(self, event: Event) -> bytes | None:
        """Return an event's thumbnail from its key; None when it has none there, or no longer."""
        value: Any = self._redis.get(self.thumbnail_key(event.envelope.id))
        return None if value is None else bytes(value)

    def thumbnail_key(self, event_id: str) -> str:
        """Return the key of an event's thumbnail."""
        return keys.thumbnail(self._stream, event_id)

    def position(self) -> str:
        """Return the id of the stream's newest entry, from which `tail` sees only later ones."""
        newest = self._redis.xrevrange(self._stream, count=1)
        return _text(newest[0][0]) if newest else "0-0"

    def tail(self, since: str = "0-0", *, block_seconds: float = 1.0) -> Generator[Event | None]:
        """Yield events after `since`, for ever; None whenever none came for `block_seconds`."""
        while True:
            reply = self._redis.xread(
                {self._stream: since}, count=100, block=max(1, int(block_seconds * 1000))
            )
            entries = entries_of(reply)
            for entry_id, fields in entries:
                since = entry_id
                if event := parsed_event(entry_id, fields):
                    yield event
            if not entries:
                yield None

    def consume(
        self, group: str, consumer: str, *, block_seconds: float = 1.0, claim_after_seconds: float = 60.0
    ) -> Generator[Event | None]:
        """Yield events to this member of a group, for ever; each stays pending until `acknowledge`.

        The member's own pending events come first, then those that another member left pending for
        `claim_after_seconds`, then new ones; None whenever none came for `block_seconds`. A member takes one
        event at a time: whoever needs longer for one than `claim_after_seconds` renews it (`renew`), or
        another member gets it too. A new group starts at the oldest event of the stream, and so does one that
        has vanished with its stream.
        """
        own, cursor = "0", "0-0"
        block = max(1, int(block_seconds * 1000))
        while True:
            try:
                entries = []
                if own:
                    entries = entries_of(self._read_group(group, consumer, own))
                    own = entries[-1][0] if entries else ""
                if not entries and not own:
                    cursor, claimed, *_ = self._redis.xautoclaim(
                        self._stream,
                        group,
                        consumer,
                        min_idle_time=int(claim_after_seconds * 1000),
                        start_id=cursor,
                        count=1,
                    )
                    entries = [(_text(entry_id), fields) for entry_id, fields in claimed]
                    entries = entries or entries_of(self._read_group(group, consumer, ">", block))
            except redis.ResponseError as error:
                if not str(error).startswith("NOGROUP"):
                    raise
                self._create_group(group)
                own, cursor = "0", "0-0"
                continue
            for entry_id, fields in entries:
                if event := parsed_event(entry_id, fields):
                    yield event
                else:
                    self._redis.xack(self._stream, group, entry_id)
            if not entries:
                yield None

    def renew(self, group: str, consumer: str, event: Event) -> None:
        """Start the time of a pending event anew, after which another member may claim it."""
        self._redis.xclaim(self._stream, group, consumer, 0, [event.entry_id], justid=True)

    def _read_group(self, group: str, consumer: str, since: str, block: int | None = None) -> Any:
        return self._redis.xreadgroup(group, consumer, {self._stream: since}, count=1, block=block)

    def _create_group(self, group: str) -> None:
        try:
            self._redis.xgroup_create(self._stream, group, id="0", mkstream=True)
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    def acknowledge(self, group: str, event: Event) -> None:
        """Acknowledge an event, so that the group never gets it again."""
        self._redis.xack(self._stream, group, event.entry_id)

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()


def _record(message_id: str, event: str) -> bytes:
    return f"{message_id}\n".encode() + zlib.compress(event.encode())


def entries_of(reply: Any) -> list[tuple[str, dict[bytes, bytes]]]:
    """Return the ids and fields in a reply of XREAD or XREADGROUP on one stream."""
    return [(_text(entry_id), fields) for _, entries in reply or [] for entry_id, fields in entries]


def _text(value: bytes | str | None) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def parsed_event(entry_id: str, fields: dict[bytes, bytes]) -> Event | None:
    """Return the event of a stream's entry; None, and counted, for an entry that this version cannot read."""
    # An entry that was trimmed while it was pending has no fields.
    if not fields:
        return None
    try:
        raw = fields[b"event"].decode()
        return Event(entry_id, read_event(raw), raw)
    except (KeyError, ValueError) as error:
        reason = "unknown_type" if isinstance(error, UnknownEventTypeError) else "unreadable"
        ENTRIES_SKIPPED.labels(reason).inc()
        log.warning("stream_entry_skipped", entry_id=entry_id, reason=reason, error=str(error)[:200])
        return None
