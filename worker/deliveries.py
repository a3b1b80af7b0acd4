"""How often a check was delivered: Redis itself carries only whether it was before."""

import redis


class Deliveries:
    """Counters by check id, each forgotten `ttl_seconds` after its last delivery."""

    def __init__(self, client: "redis.Redis[bytes]", *, ttl_seconds: int) -> None:
        self._redis = client
        self._ttl_seconds = ttl_seconds

    def count(self, check_id: str) -> int:
        """Count one more delivery and return how many there were, this one included."""
        with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.incr(f"deliveries:{check_id}")
            pipeline.expire(f"deliveries:{check_id}", self._ttl_seconds)
            return int(pipeline.execute()[0])
