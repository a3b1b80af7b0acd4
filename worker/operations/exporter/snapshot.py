"""What Redis holds of queues, checks in work, streams and workers at one moment.

Taking it costs a handful of commands, however long the queues are: lengths, the one check that is next in
turn, a sample of what is in work.
"""

import base64
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

import redis

from worker.contract.envelope import MAX_ENTRY_BYTES
from worker.contract.messages import QUEUES
from worker.process.heartbeat import ALIVE_SECONDS, WORKERS_ALIVE
from worker.settings import Settings

#: Of the unacknowledged checks so many are looked at, to share the rest among the queues.
SAMPLE = 200
#: A stream may have any number of groups; so many are told.
MOST_GROUPS = 50

# KEYS: unacked, its index, the set of workers, then the lists of all queues in the order in which a worker
# looks at them; ARGV: the longest entry that is read, the sample, seconds that a worker's name counts.
_TAKE = """
local now = redis.call('TIME')
local lengths, oldest = {}, {}
for i = 4, #KEYS do
  lengths[i - 3] = redis.call('LLEN', KEYS[i])
  local entry = redis.call('LINDEX', KEYS[i], -1)
  oldest[i - 3] = (entry and #entry <= tonumber(ARGV[1])) and entry or ''
end
local ends = {}
local sample = redis.call('HRANDFIELD', KEYS[1], ARGV[2], 'WITHVALUES')
for i = 2, #sample, 2 do ends[i / 2] = string.sub(sample[i], -100) end
local taken = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2] or ''
local alive = redis.call('ZCOUNT', KEYS[3], tonumber(now[1]) - tonumber(ARGV[3]), '+inf')
local at = now[1] .. '.' .. string.format('%06d', now[2])
return {at, lengths, oldest, redis.call('HLEN', KEYS[1]), ends, taken, alive}
"""

# kombu keeps a check of another priority than 0 in a list of its own, named so.
_PRIORITIES = ("", "\x06\x163", "\x06\x166", "\x06\x169")


@dataclass(frozen=True)
class BrokerSnapshot:
    """One moment of Redis; times are the server's, in seconds since 1970.

    By queue: `waiting`, `unacknowledged`, and `oldest`, when the check that is next in turn was submitted.
    `taken` is when the longest unacknowledged check was taken; `published` counts the stream's events ever.
    """

    at: float
    waiting: Mapping[str, int]
    unacknowledged: Mapping[str, float]
    oldest: Mapping[str, float]
    taken: float | None
    alive: int
    published: int
    stream_length: int
    groups: Mapping[str, tuple[int | None, int]]
    dead_letters: int

    @classmethod
    def take(cls, broker: redis.Redis, settings: Settings) -> Self:
        """Ask the broker. Raises `redis.RedisError`."""
        lists = [queue + suffix for queue in QUEUES for suffix in _PRIORITIES]
        keys = ["unacked", "unacked_index", WORKERS_ALIVE, *lists]
        reply: Any = broker.eval(_TAKE, len(keys), *keys, MAX_ENTRY_BYTES, SAMPLE, ALIVE_SECONDS)
        at, lengths, entries, held, ends, taken, alive = reply
        waiting, oldest = dict.fromkeys(QUEUES, 0), dict[str, float]()
        for name, length, entry in zip(lists, lengths, entries, strict=True):
            queue = name.partition("\x06")[0]
            waiting[queue] += length
            if entry and queue not in oldest and (since := submitted_at(entry)) is not None:
                oldest[queue] = since
        stream: dict[str, Any] = {}
        groups: list[dict[str, Any]] = []
        with suppress(redis.ResponseError):  # there is no stream before its first event
            stream = broker.xinfo_stream(settings.verdict_stream)
            groups = broker.xinfo_groups(settings.verdict_stream)
        return cls(
            at=float(at),
            waiting=waiting,
            unacknowledged=_shared(held, ends),
            oldest=oldest,
            taken=float(taken) if taken else None,
            alive=alive,
            published=int(stream.get("entries-added", stream.get("length", 0))),
            stream_length=int(stream.get("length", 0)),
            groups={_text(g["name"])[:100]: (g.get("lag"), int(g["pending"])) for g in groups[:MOST_GROUPS]},
            dead_letters=int(broker.xlen(settings.dead_letter_stream)),
        )


def submitted_at(entry: bytes) -> float | None:
    """Return when the check in a queue's entry was submitted, seconds since 1970; None if it does not say."""
    try:
        envelope = json.loads(entry)
        body = envelope["body"]
        if envelope["properties"].get("body_encoding") == "base64":
            body = base64.b64decode(body)
        moment = datetime.fromisoformat(json.loads(body)[0][0]["submitted_at"])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return None
    return (moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment).timestamp()


def _shared(held: int, ends: list[bytes]) -> dict[str, float]:
    """Share the unacknowledged checks among the queues as a sample of their ends has them."""
    counted = dict.fromkeys(QUEUES, 0)
    for end in ends:
        queue = end[:-1].rpartition(b",")[2].strip(b' "').decode("utf-8", "replace")
        if queue in counted:
            counted[queue] += 1
    sampled = sum(counted.values())
    if not sampled:
        return dict.fromkeys(QUEUES, 0.0)
    return {queue: held * count / sampled for queue, count in counted.items()}


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
