"""A worker's heartbeat in Redis, which also tells `Health` whether the broker answers.

The sorted set `workers:alive` holds the workers that take checks, scored by the server's time of their last
beat. A worker that is silent for `ALIVE_SECONDS` is dropped, and the set expires with its last beat. The
sorted set `workers:rates` holds what each of them can do. It does not expire, so that an autoscaler which
starts from zero workers knows what the last ones did; the beats of living workers drop the others.
"""

import threading
from typing import Any

import redis

from worker.broker.connection import connect
from worker.broker.keys import WORKER_RATES, WORKERS_ALIVE
from worker.process.health import Health
from worker.settings import BrokerSettings
from worker.telemetry.logs import get_logger

log = get_logger(__name__)

ALIVE_SECONDS = 15

_BEAT_SECONDS = 2.0
# Long enough for a server that writes to its disk, short enough for fresh probes.
_TIMEOUT_SECONDS = 2.0

# KEYS: the two sets; ARGV: the name, the seconds that a beat counts, 1 for a worker that takes checks, else
# 0, and the worker's rate.
_BEAT = """
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[2]))
if ARGV[3] == '0' then return redis.call('ZREM', KEYS[1], ARGV[1]) end
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZADD', KEYS[2], ARGV[4], ARGV[1])
if redis.call('ZCARD', KEYS[2]) > redis.call('ZCARD', KEYS[1]) then
  for _, name in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
    if not redis.call('ZSCORE', KEYS[1], name) then redis.call('ZREM', KEYS[2], name) end
  end
end
return redis.call('EXPIRE', KEYS[1], ARGV[2])
"""


def measured_rate(broker: redis.Redis) -> float | None:
    """Return the mean pictures per second of the living workers, else of the last ones; None without any.

    Raises `redis.RedisError`.
    """
    rates: Any = broker.zrange(WORKER_RATES, 0, -1, withscores=True)
    return sum(rate for _, rate in rates) / len(rates) if rates else None


class Heartbeat:
    """Beats every two seconds on a thread of its own, and tells `health` whether the broker answered."""

    def __init__(
        self, broker: BrokerSettings, name: str, health: Health, *, pictures_per_second: float
    ) -> None:
        self._name = name
        self._rate = pictures_per_second
        self._health = health
        self._redis = connect(broker, timeout_seconds=_TIMEOUT_SECONDS, retries=0)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Remove the worker from the set, and end."""
        self._ending.set()
        self._thread.join()
        self._beat(alive=False)
        self._redis.close()

    def _run(self) -> None:
        while True:
            self._beat(alive=self._health.consuming)
            if self._ending.wait(_BEAT_SECONDS):
                return

    def _beat(self, *, alive: bool) -> None:
        try:
            self._redis.eval(
                _BEAT, 2, WORKERS_ALIVE, WORKER_RATES, self._name, ALIVE_SECONDS, int(alive), repr(self._rate)
            )
        except redis.RedisError as error:
            self._health.broker_failed(f"{type(error).__name__}: {error}"[:200])
        else:
            self._health.broker_answered()
