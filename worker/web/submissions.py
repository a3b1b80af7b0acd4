"""Submissions over HTTP: checks on the queue, each once for its id, refused for another body under it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis
from pydantic import Field

from worker.broker import keys
from worker.client.errors import QueueFullError, unreachable
from worker.client.submission import entries, span_attributes
from worker.contract.messages import DEFAULT_QUEUE, ImageCheck, QueueName
from worker.settings import Settings
from worker.telemetry import tracing

# KEYS: the queue, each check's record, then the record of an idempotency key, if any; ARGV: how many checks
# may wait, the seconds that a record lives, those after which a check without an event is enqueued again, how
# many checks there are, then for each its body's digest, its entry and the record of its event, which is only
# read: as one of KEYS it would need the right to write. A record is the digest and the server's time at which
# the check was last enqueued. What a server without memory or rights refuses comes first.
_SUBMIT = """
local now, count = tonumber(redis.call('TIME')[1]), tonumber(ARGV[4])
local guard, enqueued = KEYS[count + 2], {}
if guard then
  local known = redis.call('GET', guard)
  if known and known ~= ARGV[5] then return {'conflict', 1} end
end
for i = 1, count do
  local known, event = redis.call('GET', KEYS[i + 1]), ARGV[3 * i + 4]
  if not known then enqueued[#enqueued + 1] = i
  elseif string.sub(known, 1, 64) ~= ARGV[3 * i + 2] then return {'conflict', i}
  elseif now - tonumber(string.sub(known, 66)) >= tonumber(ARGV[3]) and redis.call('EXISTS', event) == 0 then
    enqueued[#enqueued + 1] = i
  end
end
if #enqueued > 0 then
  local waiting = redis.call('LLEN', KEYS[1])
  if waiting + #enqueued > tonumber(ARGV[1]) then return {'full', waiting} end
end
for _, i in ipairs(enqueued) do
  redis.call('LPUSH', KEYS[1], ARGV[3 * i + 3])
  redis.call('SET', KEYS[i + 1], ARGV[3 * i + 2] .. ':' .. now, 'EX', ARGV[2])
end
if guard then redis.call('SET', guard, ARGV[5], 'EX', ARGV[2]) end
return {'accepted', #enqueued}
"""

# For finding out why the broker does not answer.
_DIAGNOSIS_SECONDS = 2.0


class CheckRequest(ImageCheck):
    """A check as the API takes it: the contract's own, and its queue."""

    queue: QueueName = Field(default=DEFAULT_QUEUE, description="Workers drain urgent first, bulk last.")

    def check(self) -> ImageCheck:
        """Return the check that workers take."""
        return ImageCheck(**{name: getattr(self, name) for name in ImageCheck.model_fields})

    def digest(self) -> str:
        """Return the SHA-256, in hex, of what makes a request another one: all but the time."""
        text = json.dumps(self.model_dump(mode="json", exclude={"submitted_at"}), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Conflict:
    """The check, by its place in the request, whose id or key was submitted with another body."""

    index: int


class Submissions:
    """Enqueues checks; safe for threads.

    A check that is submitted again is enqueued again only when it has no event and was last enqueued
    `resubmit_seconds` ago: then the broker, or a worker that was killed, may have lost it.
    """

    def __init__(self, settings: Settings, client: redis.Redis) -> None:
        self._settings = settings
        self._redis = client
        self._submit = client.register_script(_SUBMIT)
        self._resubmit_seconds = settings.visibility_timeout_seconds

    def submit(
        self, requests: Sequence[CheckRequest], *, queue: QueueName, guard: str | None = None
    ) -> Conflict | None:
        """Enqueue checks, all or none, and return when the broker has them; or return what is refused.

        `guard` names the caller's idempotency key, which belongs to the first check. Raises `QueueFullError`
        and `QueueUnreachableError`.
        """
        checks = [request.check() for request in requests]
        names: list[str] = [queue]
        arguments: list[Any] = [
            self._settings.max_queue_length,
            self._settings.publish_once_ttl_seconds,
            self._resubmit_seconds,
            len(checks),
        ]
        for request, check, entry in zip(requests, checks, entries(checks, queue), strict=True):
            names.append(keys.submitted(check.check_id))
            event = keys.published(self._settings.verdict_stream, check.check_id)
            arguments += [request.digest(), entry, event]
        if guard:
            names.append(keys.submitted_under(guard))
        try:
            with tracing.span("submit", **span_attributes(checks, queue)):
                outcome, number = self._submit(keys=names, args=arguments)
        except redis.RedisError as error:
            raise unreachable(error, self._settings.broker, seconds=_DIAGNOSIS_SECONDS) from error
        if outcome == b"full":
            raise QueueFullError(
                f"{number} checks wait in {queue}; the limit is {self._settings.max_queue_length}"
            )
        return Conflict(number - 1) if outcome == b"conflict" else None
