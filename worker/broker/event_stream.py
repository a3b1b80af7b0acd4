"""A stream of CloudEvents: read in groups, each event until it is acknowledged, and trimmed afterwards."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import redis

from worker.contract.messages import DecisionEvent, RejectionEvent, UnknownEventTypeError, VerdictEvent
from worker.telemetry.logs import get_logger

log = get_logger(__name__)

Envelope = TypeVar("Envelope", bound=VerdictEvent | RejectionEvent | DecisionEvent)

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
class StreamEvent(Generic[Envelope]):
    """One entry of a stream."""

    #: Its id on the stream.
    entry_id: str
    #: The parsed CloudEvent.
    envelope: Envelope
    #: The CloudEvent's JSON as published.
    raw: str

    @property
    def check_id(self) -> str:
        """The check that the event answers."""
        return self.envelope.data.check_id


class EventStream(Generic[Envelope]):
    """A stream in one Redis database, whose entries `read` parses; safe for threads."""

    def __init__(self, client: redis.Redis, stream: str, read: Callable[[str], Envelope]) -> None:
        self._redis = client
        self._stream = stream
        self._read = read

    def trim(self, *, min_age_seconds: int, retention_seconds: int, spare_length: int) -> None:
        """Delete the events that are older than `min_age_seconds` and acknowledged by every group.

        From `spare_length` events on, younger ones that every group has acknowledged are deleted too. After
        `retention_seconds` an event is deleted in any case; a group that loses one is named in the log.
        Raises redis.RedisError.
        """
        losing = self._redis.eval(_TRIM, 1, self._stream, min_age_seconds, retention_seconds, spare_length)
        for group in losing:
            log.error("events_given_up", group=_text(group), retention_seconds=retention_seconds)

    def position(self) -> str:
        """Return the id of the stream's newest entry, from which `tail` sees only later ones."""
        newest = self._redis.xrevrange(self._stream, count=1)
        return _text(newest[0][0]) if newest else "0-0"

    def tail(
        self, since: str = "0-0", *, block_seconds: float = 1.0
    ) -> Generator[StreamEvent[Envelope] | None]:
        """Yield events after `since`, for ever; None whenever none came for `block_seconds`."""
        while True:
            reply = self._redis.xread(
                {self._stream: since}, count=100, block=max(1, int(block_seconds * 1000))
            )
            entries = entries_of(reply)
            for entry_id, fields in entries:
                since = entry_id
                if event := parsed(entry_id, fields, self._read):
                    yield event
            if not entries:
                yield None

    def consume(
        self, group: str, consumer: str, *, block_seconds: float = 1.0, claim_after_seconds: float = 60.0
    ) -> Generator[StreamEvent[Envelope] | None]:
        """Yield events to this member of a group, for ever; each stays pending until `acknowledge`.

        Everything is as in `batches`, with one event at a time: whoever needs longer for one than
        `claim_after_seconds` renews it (`renew`), or another member gets it too. None whenever none came for
        `block_seconds`.
        """
        for batch in self.batches(
            group, consumer, size=1, block_seconds=block_seconds, claim_after_seconds=claim_after_seconds
        ):
            yield batch[0] if batch else None

    def batches(
        self,
        group: str,
        consumer: str,
        *,
        size: int,
        block_seconds: float = 1.0,
        claim_after_seconds: float = 60.0,
    ) -> Generator[list[StreamEvent[Envelope]]]:
        """Yield up to `size` events at a time to this member of a group, for ever.

        The member's own pending events come first, then those that another member left pending for
        `claim_after_seconds`, then new ones; an empty list whenever none came for `block_seconds`. A new
        group starts at the oldest event of the stream, and so does one that has vanished with its stream.
        """
        own, cursor = "0", "0-0"
        block = max(1, int(block_seconds * 1000))
        while True:
            try:
                entries = []
                if own:
                    entries = entries_of(self._read_group(group, consumer, own, size))
                    own = entries[-1][0] if entries else ""
                if not entries and not own:
                    cursor, claimed, *_ = self._redis.xautoclaim(
                        self._stream,
                        group,
                        consumer,
                        min_idle_time=int(claim_after_seconds * 1000),
                        start_id=cursor,
                        count=size,
                    )
                    entries = [(_text(entry_id), fields) for entry_id, fields in claimed]
                    entries = entries or entries_of(self._read_group(group, consumer, ">", size, block))
            except redis.ResponseError as error:
                if not str(error).startswith("NOGROUP"):
                    raise
                self._create_group(group)
                own, cursor = "0", "0-0"
                continue
            events = []
            for entry_id, fields in entries:
                if event := parsed(entry_id, fields, self._read):
                    events.append(event)
                else:
                    self._redis.xack(self._stream, group, entry_id)
            if events or not entries:
                yield events

    def renew(self, group: str, consumer: str, event: StreamEvent[Envelope]) -> None:
        """Start the time of a pending event anew, after which another member may claim it."""
        self._redis.xclaim(self._stream, group, consumer, 0, [event.entry_id], justid=True)

    def _read_group(self, group: str, consumer: str, since: str, size: int, block: int | None = None) -> Any:
        return self._redis.xreadgroup(group, consumer, {self._stream: since}, count=size, block=block)

    def _create_group(self, group: str) -> None:
        try:
            self._redis.xgroup_create(self._stream, group, id="0", mkstream=True)
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    def acknowledge(self, group: str, *events: StreamEvent[Envelope]) -> None:
        """Acknowledge events, so that the group never gets them again."""
        self._redis.xack(self._stream, group, *(event.entry_id for event in events))

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()


def entries_of(reply: Any) -> list[tuple[str, dict[bytes, bytes]]]:
    """Return the ids and fields in a reply of XREAD or XREADGROUP on one stream."""
    return [(_text(entry_id), fields) for _, entries in reply or [] for entry_id, fields in entries]


def _text(value: bytes | str | None) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def parsed(
    entry_id: str, fields: dict[bytes, bytes], read: Callable[[str], Envelope]
) -> StreamEvent[Envelope] | None:
    """Return the event of a stream's entry; None, and counted, for an entry that this version cannot read."""
    # An entry that was trimmed while it was pending has no fields.
    if not fields:
        return None
    try:
        raw = fields[b"event"].decode()
        return StreamEvent(entry_id, read(raw), raw)
    except (KeyError, ValueError) as error:
        from worker.telemetry.metrics import ENTRIES_SKIPPED

        reason = "unknown_type" if isinstance(error, UnknownEventTypeError) else "unreadable"
        ENTRIES_SKIPPED.labels(reason).inc()
        log.warning("stream_entry_skipped", entry_id=entry_id, reason=reason, error=str(error)[:200])
        return None
