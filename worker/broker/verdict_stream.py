"""The results queue: publish once, consume in groups."""

import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import redis
from pydantic import TypeAdapter
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from worker.broker.connection import tls_options
from worker.contract.messages import ImageEvent, RejectionEvent, VerdictEvent
from worker.settings import Settings
from worker.telemetry.logs import get_logger

log = get_logger(__name__)

# The stream is written before the mark: were it the other way round, a server that refuses the entry (out of
# memory, say) would leave a mark without a verdict.
_PUBLISH_ONCE = """
if redis.call('EXISTS', KEYS[1]) == 1 then return false end
local id = redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[2], '*', unpack(ARGV, 3))
redis.call('SET', KEYS[1], id, 'EX', ARGV[1])
return id
"""

_EVENT: TypeAdapter[ImageEvent] = TypeAdapter(ImageEvent)


class _OutermostRetry(Retry):
    """Tries again what the thread began, and not also each of its parts.

    redis-py asks for a retry around a command, around the connection that it makes for it, and around the
    health check of that: six tries of each would last a minute.
    """

    _thread = threading.local()

    def call_with_retry(self, do: Callable[[], Any], *args: Any, **kwargs: Any) -> Any:
        """Return what `do` returns; an error of a part is the whole's."""
        if getattr(self._thread, "tries", False):
            return do()
        self._thread.tries = True
        try:
            return super().call_with_retry(do, *args, **kwargs)
        finally:
            self._thread.tries = False


def connect(settings: Settings, *, timeout_seconds: float = 10, retries: int = 6) -> redis.Redis:
    """Return a client that gives up on a silent server after seconds and tries a lost connection again."""
    return redis.Redis.from_url(
        settings.redis_url.get_secret_value(),
        socket_timeout=timeout_seconds,
        socket_connect_timeout=min(5, timeout_seconds),
        health_check_interval=5,
        retry=_OutermostRetry(ExponentialBackoff(cap=2, base=0.1), retries=retries),
        retry_on_error=[redis.ConnectionError, redis.TimeoutError],
        **tls_options(settings),
    )


@dataclass(frozen=True)
class Event:
    """One entry of the stream: `entry_id`, the parsed `envelope`, and the thumbnail's PNG bytes if inline."""

    entry_id: str
    envelope: VerdictEvent | RejectionEvent
    thumbnail: bytes | None
    raw: str

    @property
    def check_id(self) -> str:
        """The check that it answers."""
        return self.envelope.data.check_id


class Results:
    """The verdict stream of one Redis database."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._redis = connect(settings)
        self._publish_once = self._redis.register_script(_PUBLISH_ONCE)

    def publish(self, event: VerdictEvent | RejectionEvent, thumbnail: bytes | None = None) -> bool:
        """Append the event unless its check was already answered; return whether it was appended.

        Raises redis.RedisError when the server cannot be reached after retries.
        """
        stream = self._settings.verdict_stream
        fields: list[str | bytes] = ["event", event.model_dump_json()]
        if thumbnail is not None:
            fields += ["thumbnail", thumbnail]
        mark = self._mark(event.data.check_id)
        ttl, length = self._settings.publish_once_ttl_seconds, self._settings.verdict_stream_max_length
        return self._publish_once(keys=[mark, stream], args=[ttl, length, *fields]) is not None

    def answered(self, check_id: str) -> bool:
        """Return whether an event of this check was published before."""
        return bool(self._redis.exists(self._mark(check_id)))

    def position(self) -> str:
        """Return the id of the stream's newest entry, from which `tail` sees only later ones."""
        newest = self._redis.xrevrange(self._settings.verdict_stream, count=1)
        return _text(newest[0][0]) if newest else "0-0"

    def tail(self, since: str = "0-0", *, block_seconds: float = 1.0) -> Generator[Event | None]:
        """Yield events after `since`, for ever; None whenever none came for `block_seconds`."""
        stream = self._settings.verdict_stream
        while True:
            reply = self._redis.xread({stream: since}, count=100, block=max(1, int(block_seconds * 1000)))
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
        """Yield events to this member of a group, for ever; each is its own until `acknowledge`.

        Its own unacknowledged ones come first, then those that another member left for
        `claim_after_seconds`, then new ones; None whenever none came for `block_seconds`. A new group
        begins at the oldest event kept.
        """
        stream = self._settings.verdict_stream
        try:
            self._redis.xgroup_create(stream, group, id="0", mkstream=True)
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        pending = "0"
        while entries := _entries(self._redis.xreadgroup(group, consumer, {stream: pending}, count=100)):
            for entry_id, fields in entries:
                pending = entry_id
                # An entry that was trimmed away while it was pending has no fields.
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
        """Tell the group that an event was dealt with."""
        self._redis.xack(self._settings.verdict_stream, group, event.entry_id)

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def _mark(self, check_id: str) -> str:
        # The braces keep the mark in the stream's hash slot of a Redis Cluster.
        return f"{{{self._settings.verdict_stream}}}:published:{check_id}"


def _entries(reply: Any) -> list[tuple[str, dict[bytes, bytes]]]:
    return [(_text(entry_id), fields) for _, entries in reply or [] for entry_id, fields in entries]


def _text(value: bytes | str | None) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _parsed(entry_id: str, fields: dict[bytes, bytes]) -> Event | None:
    """Return the event, or None for an entry that is none: it must not stop whoever reads the stream."""
    try:
        raw = fields[b"event"].decode()
        return Event(entry_id, _EVENT.validate_json(raw), fields.get(b"thumbnail"), raw)
    except (KeyError, ValueError) as error:
        log.warning("stream_entry_skipped", entry_id=entry_id, why=str(error)[:200])
        return None
