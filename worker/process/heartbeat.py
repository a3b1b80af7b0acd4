"""A worker's heartbeat in Redis, which also tells `Health` whether the broker answers.

The sorted set `workers:alive` holds the workers that take checks, scored by the server's time of their last
beat. A worker that is silent for `ALIVE_SECONDS` is dropped, and the set expires with its last beat.
"""

import threading

import redis

from worker.broker.connection import connect
from worker.broker.keys import WORKERS_ALIVE
from worker.process.health import Health
from worker.settings import BrokerSettings
from worker.telemetry.logs import get_logger

log = get_logger(__name__)

ALIVE_SECONDS = 15

_BEAT_SECONDS = 2.0
# Long enough for a server that writes to its disk, short enough for fresh probes.
_TIMEOUT_SECONDS = 2.0

# KEYS: the set; ARGV: the name, the seconds that a beat counts, 1 for a worker that takes checks, else 0.
_BEAT = """
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[2]))
if ARGV[3] == '0' then return redis.call('ZREM', KEYS[1], ARGV[1]) end
redis.call('ZADD', KEYS[1], now, ARGV[1])
return redis.call('EXPIRE', KEYS[1], ARGV[2])
"""


class Heartbeat:
    """Beats every two seconds on a thread of its own, and tells `health` whether the broker answered."""

    def __init__(self, broker: BrokerSettings, name: str, health: Health) -> None:
        self._name = name
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
            self._redis.eval(_BEAT, 1, WORKERS_ALIVE, self._name, ALIVE_SECONDS, int(alive))
        except redis.RedisError as error:
            self._health.broker_failed(f"{type(error).__name__}: {error}"[:200])
        else:
            self._health.broker_answered()
