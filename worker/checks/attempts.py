"""Attempts at a check: how many there were, and how many ended with their worker process.

Redis itself knows only that a message was delivered before, which is true after every lost connection.
Counted here are attempts that started and were not reported as ended; a process that ends an attempt reports
it.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import uuid4

import redis

from worker.broker import keys
from worker.contract.messages import InvalidMessageError, UnavailableError
from worker.telemetry.logs import get_logger

log = get_logger(__name__)

# KEYS: the check's hash; ARGV: this process's field, 1 when the check runs isolated, the seconds after which
# an attempt counts as lost, the most lost ones, the seconds that the hash lives. Returns {number of this
# attempt, other processes at the check, those of them that are lost}. The number is -1 when too many were
# lost, and 0 when the check must run isolated and does not.
_START = """
local own, isolated, lost_after = ARGV[1], ARGV[2] == '1', tonumber(ARGV[3])
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local others, lost = 0, 0
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  if string.sub(fields[i], 1, 3) == 'by:' and fields[i] ~= own then
    others = others + 1
    if now - tonumber(fields[i + 1]) >= lost_after then lost = lost + 1 end
  end
end
if lost >= tonumber(ARGV[4]) then return {-1, others, lost} end
if others > 0 and not isolated then return {0, others, lost} end
redis.call('HSET', KEYS[1], own, string.format('%.3f', now))
local number = redis.call('HINCRBY', KEYS[1], 'count', 1)
redis.call('EXPIRE', KEYS[1], ARGV[5])
return {number, others, lost}
"""


# Characters of a retry's detail that are kept.
_DETAIL_CHARACTERS = 300
#: Fields of a check's hash: why it was last retried, and that in words for people.
RETRY_FIELDS = ("retry_reason", "retry_detail")


class LockTimeoutError(UnavailableError):
    """The lock was not to be had in time, shared or exclusive."""


class SharedLock:
    """A lock that many threads hold `shared` or one holds `exclusive`, which goes before newcomers."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sharing = 0
        self._waiting_exclusive = 0
        self._exclusive = False

    @property
    def waiting_exclusive(self) -> int:
        """How many threads wait for the exclusive lock."""
        return self._waiting_exclusive

    @contextmanager
    def shared(self, timeout_seconds: float) -> Iterator[None]:
        """Hold the lock beside others. Raises `LockTimeoutError`."""
        with self._changed:
            if not self._changed.wait_for(
                lambda: not self._exclusive and not self._waiting_exclusive, timeout_seconds
            ):
                raise LockTimeoutError(f"an isolated check held the lock for {timeout_seconds} seconds")
            self._sharing += 1
        try:
            yield
        finally:
            with self._changed:
                self._sharing -= 1
                self._changed.notify_all()

    @contextmanager
    def exclusive(self, timeout_seconds: float) -> Iterator[None]:
        """Hold the lock with no other holder. Raises `LockTimeoutError`."""
        with self._changed:
            self._waiting_exclusive += 1
            try:
                if not self._changed.wait_for(
                    lambda: not self._exclusive and not self._sharing, timeout_seconds
                ):
                    raise LockTimeoutError(f"other checks held the lock for {timeout_seconds} seconds")
                self._exclusive = True
            finally:
                self._waiting_exclusive -= 1
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._exclusive = False
                self._changed.notify_all()


@dataclass
class Attempt:
    """One attempt at a check."""

    #: 1 at the first.
    number: int
    #: Whether it runs isolated in its process, after another process was lost at the check.
    isolated: bool
    #: The field of the check's hash that tells that it has not ended.
    field: str
    #: Whether Redis was told that it has ended.
    ended: bool = False


class Attempts:
    """The attempts at every check, each check's forgotten `ttl_seconds` after its last one.

    An attempt that has not ended after `deadline_seconds` is lost with its process; after `max_attempts` lost
    ones a check is not started again.
    """

    def __init__(
        self, client: redis.Redis, *, deadline_seconds: float, max_attempts: int, ttl_seconds: int
    ) -> None:
        self._redis = client
        self._deadline_seconds = deadline_seconds
        self._max_attempts = max_attempts
        self._ttl_seconds = ttl_seconds
        # A container that starts again has the host name and process id of the one that died.
        self._field = f"by:{uuid4().hex}"
        self._start = client.register_script(_START)
        self._lock = SharedLock()
        self._unreported: set[str] = set()
        self._unreported_lock = threading.Lock()

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    @contextmanager
    def start(self, check_id: str) -> Iterator[Attempt]:
        """Run the block as one attempt at a check: beside others, or isolated if a process was lost at it.

        Raises `InvalidMessageError` when `max_attempts` processes were lost at it, `LockTimeoutError`, and
        redis.RedisError.
        """
        self._flush()
        with self._lock.shared(self._deadline_seconds):
            if attempt := self._started(check_id, isolated=False):
                with self._reported(check_id, attempt):
                    yield attempt
                return
        # A process that is lost takes along the checks beside the one at fault: this one runs isolated.
        with self._lock.exclusive(self._deadline_seconds):
            if attempt := self._started(check_id, isolated=True):
                with self._reported(check_id, attempt):
                    yield attempt
                return
        raise AssertionError("unreachable: an isolated check starts or is refused")

    def total(self, check_id: str) -> int:
        """Return how many attempts at a check there were. Raises redis.RedisError."""
        return int(self._redis.hget(keys.attempts(check_id), "count") or 0)

    def note_retry(self, check_id: str, reason: str, detail: str) -> None:
        """Keep why a check is retried, for whoever waits for its event. Raises redis.RedisError."""
        fields = zip(RETRY_FIELDS, (reason, detail[:_DETAIL_CHARACTERS]), strict=True)
        with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hset(keys.attempts(check_id), items=[text for pair in fields for text in pair])
            pipeline.expire(keys.attempts(check_id), self._ttl_seconds)
            pipeline.execute()

    def _started(self, check_id: str, *, isolated: bool) -> Attempt | None:
        arguments = (
            self._field,
            int(isolated),
            self._deadline_seconds,
            self._max_attempts,
            self._ttl_seconds,
        )
        number, others, lost = self._start(keys=[keys.attempts(check_id)], args=arguments)
        if number < 0:
            raise InvalidMessageError(
                "too_many_attempts", f"{lost} worker processes ended during this check."
            )
        if others and isolated:
            log.warning("check_isolated", check_id=check_id, attempt=number, processes_lost=others)
        return Attempt(number, isolated, self._field) if number else None

    @contextmanager
    def _reported(self, check_id: str, attempt: Attempt) -> Iterator[None]:
        try:
            yield
        finally:
            if not attempt.ended:
                self._report(check_id)

    def _report(self, check_id: str) -> None:
        with self._unreported_lock:
            self._unreported.add(check_id)
        try:
            self._flush()
        except redis.RedisError as error:
            log.warning("attempt_end_unreported", check_id=check_id, error=str(error))

    def _flush(self) -> None:
        """Report the attempts that have ended, with those that Redis could not be told of before."""
        with self._unreported_lock:
            ended, self._unreported = self._unreported, set()
        try:
            for check_id in list(ended):
                self._redis.hdel(keys.attempts(check_id), self._field)
                ended.discard(check_id)
        finally:
            with self._unreported_lock:
                self._unreported |= ended
