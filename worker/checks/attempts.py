"""How often a check was begun, and how many worker processes ended while they were at it.

Redis itself carries only whether a message was delivered before, which is so after every lost connection.
What counts here is a beginning without an end: a process that ends a check, however, takes its own back.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

import redis

from worker.checks.shared_lock import SharedLock
from worker.contract.messages import InvalidMessageError
from worker.telemetry.logs import get_logger

if TYPE_CHECKING:
    from worker.settings import Settings

log = get_logger(__name__)

# Returns {number of this delivery, other processes at it, those of them that cannot be at it any more}. The
# number of one that is not begun is -1 when too many were lost, and 0 when it must be alone and is not.
_BEGIN = """
local own, alone, lost_after = 'by:' .. ARGV[1], ARGV[2] == '1', tonumber(ARGV[3])
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
if others > 0 and not alone then return {0, others, lost} end
redis.call('HSET', KEYS[1], own, string.format('%.3f', now))
local number = redis.call('HINCRBY', KEYS[1], 'count', 1)
redis.call('EXPIRE', KEYS[1], ARGV[5])
return {number, others, lost}
"""


@dataclass(frozen=True)
class Attempt:
    """One beginning of a check: its `number`, 1 at the first, and whether it runs `alone` in its process."""

    number: int
    alone: bool


class Attempts:
    """The beginnings of every check, each forgotten some days after its last one."""

    def __init__(self, client: redis.Redis, settings: "Settings") -> None:
        self._redis = client
        self._settings = settings
        # A container that starts again has the host's name and process id of the one that died.
        self._process = uuid4().hex
        self._lock = SharedLock()
        self._untold: set[str] = set()
        self._untold_lock = threading.Lock()

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    @contextmanager
    def begin(self, check_id: str) -> Iterator[Attempt]:
        """Run the block as one delivery of a check: beside others, or alone if a process was lost at it.

        Raises `InvalidMessageError` when `max_attempts` processes were lost at it, `LockTimeoutError`, and
        redis.RedisError.
        """
        self._tell()
        patience = self._settings.check_deadline_seconds
        with self._lock.shared(patience):
            if attempt := self._begun(check_id, alone=False):
                with self._ending(check_id):
                    yield attempt
                return
        # A process that was lost took along what it had beside: this check gets no company.
        with self._lock.alone(patience):
            if attempt := self._begun(check_id, alone=True):
                with self._ending(check_id):
                    yield attempt
                return
        raise AssertionError("unreachable: alone, a check is begun or refused")

    def total(self, check_id: str) -> int:
        """Return how often a check was begun."""
        return int(self._redis.hget(attempts_key(check_id), "count") or 0)

    def _begun(self, check_id: str, *, alone: bool) -> Attempt | None:
        settings = self._settings
        arguments = (
            self._process,
            int(alone),
            settings.check_deadline_seconds,
            settings.max_attempts,
            settings.publish_once_ttl_seconds,
        )
        number, others, lost = self._redis.eval(_BEGIN, 1, attempts_key(check_id), *arguments)
        if number < 0:
            raise InvalidMessageError(
                "too_many_attempts", f"{lost} worker processes ended during this check."
            )
        if others and alone:
            log.warning("check_isolated", check_id=check_id, attempt=number, processes_lost=others)
        return Attempt(number, alone) if number else None

    @contextmanager
    def _ending(self, check_id: str) -> Iterator[None]:
        try:
            yield
        finally:
            with self._untold_lock:
                self._untold.add(check_id)
            try:
                self._tell()
            except redis.RedisError as error:
                log.warning("attempt_end_unreported", check_id=check_id, why=str(error))

    def _tell(self) -> None:
        """Take back the beginnings of what has ended, those too that Redis could not be told before."""
        with self._untold_lock:
            ended, self._untold = self._untold, set()
        try:
            for check_id in list(ended):
                self._redis.hdel(attempts_key(check_id), f"by:{self._process}")
                ended.discard(check_id)
        finally:
            with self._untold_lock:
                self._untold |= ended


def attempts_key(check_id: str) -> str:
    """Return the name of the hash that holds a check's beginnings."""
    return f"attempts:{check_id}"
