"""The verdict stream: each check's event is published once and consumed in groups."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Self

import redis
from pydantic import TypeAdapter

from worker.broker import keys
from worker.broker.connection import connect
from worker.contract.messages import ImageEvent, RejectionEvent, VerdictEvent
from worker.settings import Settings
from worker.telemetry.logs import get_logger

log = get_logger(__name__)

# KEYS: mark, stream; ARGV: seconds that the mark lives, length of the stream, the entry's fields. XADD comes
# first: a server that refuses it, out of memory say, then leaves no mark without a verdict.
_PUBLISH_ONCE = """
if redis.call('EXISTS', KEYS[1]) == 1 then return false end
local id = redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[2], '*', unpack(ARGV, 3))
redis.call('SET', KEYS[1], id, 'EX', ARGV[1])
return id
"""

_EVENT: TypeAdapter[ImageEvent] = TypeAdapter(ImageEvent)


@dataclass(frozen=True)
class Event:
    """One entry of the verdict stream."""

    #: Its id on the stream.
    entry_id: str
    #: The parsed CloudEvent.
    envelope: VerdictEvent | RejectionEvent
    #: The thumbnail's PNG bytes, if it is inline.
    thumbnail: bytes | None
    #: The CloudEvent's JSON as published.
    raw: str

    @property
    def check_id(self) -> str:
        """The check that the event answers."""
        return self.envelope.data.check_id


class VerdictStream:
    """The stream of verdicts and rejections in one Redis database; safe for threads.

    It holds about `max_length` events; a check id is remembered as published for `published_ttl_seconds`.
    """

    def __init__(
        self, client: redis.Redis, *, stream: str, max_length: int, published_ttl_seconds: int
    ) -> None:
        self._redis = client
        self._stream = stream
        self._max_length = max_length
        self._published_ttl_seconds = published_ttl_seconds
        self._publish_once = client.register_script(_PUBLISH_ONCE)

    @classmethod
    def connect(cls, settings: Settings) -> Self:
        """Return the stream that the settings name, with connections of its own."""
        return cls(
            connect(settings.broker),
            stream=settings.verdict_stream,
            max_length=settings.verdict_stream_max_length,
            published_ttl_seconds=settings.publish_once_ttl_seconds,
        )

    def publish(self, event: VerdictEvent | RejectionEvent, thumbnail: bytes | None = None) -> bool:
        """Append the event unless its check has one already; return whether it was appended.

        Raises redis.RedisError when the server cannot be reached after retries.
        """
        fields: list[str | bytes] = ["event", event.model_dump_json()]
        if thumbnail is not None:
            fields += ["thumbnail", thumbnail]
        marks = [keys.published(self._stream, event.data.check_id), self._stream]
        limits = [self._published_ttl_seconds, self._max_length]
        return self._publish_once(keys=marks, args=[*limits, *fields]) is not None

    def is_published(self, check_id: str) -> bool:
        """Return whether the check has its event."""
        return bool(self._redis.exists(keys.published(self._stream, check_id)))

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
            entries = _entries(reply)
            for entry_id, fields in entries:
                since = entry_id
                if event := _parsed(entry_id, fields):
                    yield event
            if not entries:
                yield None

    def consume(
        self, group: str, consumer: str, *, block_seconds: float = 1.0, claim_after_seconds: float = 60.0
    ) -> Generator[Event | None]:
        """Yield events to this member of a group, for ever; each stays pending until `acknowledge`.

        The member's own pending events come first, then those that another member left pending for
        `claim_after_seconds`, then new ones; None whenever none came for `block_seconds`. A new group starts
        at the oldest event of the stream.
        """
        stream = self._stream
        try:
            self._redis.xgroup_create(stream, group, id="0", mkstream=True)
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        pending = "0"
        while entries := _entries(self._redis.xreadgroup(group, consumer, {stream: pending}, count=100)):
            for entry_id, fields in entries:
                pending = entry_id
                # An entry that was trimmed while it was pending has no fields.
                if event := _parsed(entry_id, fields) if fields else None:
                    yield event
                else:
                    self._redis.xack(stream, group, entry_id)
        idle = int(claim_after_seconds * 1000)
        while True:
            _, claimed, *_ = self._redis.xautoclaim(stream, group, consumer, min_idle_time=idle, count=100)
            fresh = _entries(
                self._redis.xreadgroup(
                    group, consumer, {stream: ">"}, count=100, block=max(1, int(block_seconds * 1000))
                )
            )
            found = [(_text(entry_id), fields) for entry_id, fields in claimed if fields] + fresh
            for entry_id, fields in found:
                if event := _parsed(entry_id, fields):
                    yield event
                else:
                    self._redis.xack(stream, group, entry_id)
            if not found:
                yield None

    def acknowledge(self, group: str, event: Event) -> None:
        """Acknowledge an event, so that the group never gets it again."""
        self._redis.xack(self._stream, group, event.entry_id)

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()


def _entries(reply: Any) -> list[tuple[str, dict[bytes, bytes]]]:
    return [(_text(entry_id), fields) for _, entries in reply or [] for entry_id, fields in entries]


def _text(value: bytes | str | None) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _parsed(entry_id: str, fields: dict[bytes, bytes]) -> Event | None:
    """Return the event, or None for an entry that is no event, which must not stop the reader."""
    try:
        raw = fields[b"event"].decode()
        return Event(entry_id, _EVENT.validate_json(raw), fields.get(b"thumbnail"), raw)
    except (KeyError, ValueError) as error:
        log.warning("stream_entry_skipped", entry_id=entry_id, error=str(error)[:200])
        return None
