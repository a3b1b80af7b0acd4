"""The consumer groups of the verdict stream: how far each has read, and since when an event waits for it."""

from dataclasses import dataclass
from typing import Any

import redis

#: A stream may have any number of groups; at most this many are read.
MAX_GROUPS = 50

# ARGV: the stream, the most groups. Reads ids, no event. For one of KEYS, EVAL would need the right to write.
_READ = """
if redis.call('EXISTS', ARGV[1]) == 0 then return {} end
local function facts(reply)
  local found = {}
  for i = 1, #reply, 2 do found[reply[i]] = reply[i + 1] end
  return found
end
local stream = facts(redis.call('XINFO', 'STREAM', ARGV[1]))
local first, last = stream['first-entry'], stream['last-entry']
local groups = {}
for number, reply in ipairs(redis.call('XINFO', 'GROUPS', ARGV[1])) do
  if number > tonumber(ARGV[2]) then break end
  local group = facts(reply)
  local pending = redis.call('XPENDING', ARGV[1], group['name'])
  groups[number] = {
    group['name'], group['lag'] or -1, pending[1], pending[1] > 0 and pending[2] or group['last-delivered-id']
  }
end
return {first and first[1] or '', last and last[1] or '', groups}
"""


@dataclass(frozen=True)
class ConsumerGroup:
    """One group at one moment."""

    name: str
    #: Events that it has not read; None where the server cannot tell.
    lag: int | None
    #: Events that it has read and not acknowledged.
    pending: int
    #: When the oldest event that it has not acknowledged was published, by the server's clock, in seconds
    #: since 1970; None without one. Earlier than that, but not before the stream's first event, where it has
    #: acknowledged all that it read: its own next event is not read.
    waiting_since: float | None


def consumer_groups(client: redis.Redis, stream: str) -> list[ConsumerGroup]:
    """Return the groups of a stream, none for a stream that does not exist. Raises redis.RedisError."""
    reply: Any = client.eval(_READ, 0, stream, MAX_GROUPS)
    if not reply:
        return []
    first, last, groups = reply
    return [_group(first, last, facts) for facts in groups]


def _group(first: bytes, last: bytes, facts: tuple[bytes, int, int, bytes]) -> ConsumerGroup:
    name, lag, pending, position = facts
    waits = bool(first) and (pending > 0 or lag > 0 or (lag < 0 and position != last))
    return ConsumerGroup(
        name=name.decode("utf-8", "replace"),
        lag=None if lag < 0 else lag,
        pending=pending,
        waiting_since=max(_published_at(first), _published_at(position)) if waits else None,
    )


def _published_at(entry_id: bytes) -> float:
    return int(entry_id.partition(b"-")[0]) / 1000
