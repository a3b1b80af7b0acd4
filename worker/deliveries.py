"""How often a check was delivered: Redis itself carries only whether it was before."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import redis


class Deliveries:
    """Counters by check id, each forgotten `ttl_seconds` after its last delivery."""

    def __init__(self, client: "redis.Redis", *, ttl_seconds: int) -> None:
        self._redis = client
        self._ttl_seconds = ttl_seconds

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def count(self, check_id: str, *, retry: int = 0) -> int:
        """Count one more delivery of a check's try and return how many there were, this one included.

        Each retry that the worker asked for counts from 1 again: only what was not asked for adds up.
        """
        key = f"deliveries:{check_id}:{retry}"
        with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.incr(key)
            pipeline.expire(key, self._ttl_seconds)
            return int(pipeline.execute()[0])
