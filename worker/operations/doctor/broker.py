"""The broker: trust, version, persistence, eviction, memory and clock."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import redis

from worker.broker.connection import distrust
from worker.broker.verdict_stream import connect
from worker.operations.doctor.check import Check, fault, ok, warning
from worker.operations.doctor.queues import QUEUE_CHECKS
from worker.settings import Settings

# XAUTOCLAIM, which consumers use, came with 6.2.
_OLDEST_VERSION = (6, 2)

# An entry without its thumbnail, and the thumbnail at 128 x 128 pixels.
_EVENT_BYTES, _THUMBNAIL_BYTES, _THUMBNAIL_SIDE = 3_000, 20_000, 128

_CLOCK_WARNING_SECONDS = 2.0


def check_broker(settings: Settings) -> Iterator[Check]:
    """Yield the checks; when the broker cannot be reached, or its disk is full, that alone."""
    with connect(settings, timeout_seconds=5, retries=0) as client:
        try:
            client.ping()
        except redis.RedisError as error:
            if str(error).startswith("MISCONF"):
                # With a full disk a server refuses even a ping, and nothing else is to be asked.
                yield ok("broker", "answers")
                yield _refusing_writes(error)
                return
            mend = "a DNF_REDIS_URL that can be reached from here"
            yield fault("broker", "no answer", distrust(error, settings) or str(error), mend)
            return
        yield ok("broker", f"answers{', encrypted' if _encrypted(settings) else ''}")
        for name, look in {**_CHECKS, **QUEUE_CHECKS}.items():
            try:
                yield look(name, client, settings)
            except redis.exceptions.NoPermissionError as error:
                yield warning(
                    name,
                    "not to be seen by this user",
                    str(error),
                    "run the doctor as the ACL user `operator`",
                )
            except redis.RedisError as error:
                yield fault(name, "no answer", str(error), "see what the broker logs")


def _encrypted(settings: Settings) -> bool:
    return settings.redis_url.get_secret_value().startswith("rediss:")


def _version(name: str, client: redis.Redis, _: Settings) -> Check:
    facts: Any = client.info("server")
    version = str(facts["redis_version"])
    product = f"Valkey {facts['valkey_version']}, " if "valkey_version" in facts else ""
    seen = f"{product}Redis {version}"
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_VERSION:
        return fault(name, seen, "Consumers could not claim what others left.", "Redis 6.2 or Valkey")
    return ok(name, seen)


def _append_only(name: str, client: redis.Redis, _: Settings) -> Check:
    facts: Any = client.info("persistence")
    if not facts["aof_enabled"]:
        return fault(
            name,
            "off",
            "A restart of the broker loses every check that waits and every verdict.",
            "`appendonly yes` (and `appendfsync everysec`) in the broker's configuration",
        )
    return ok(name, "on")


def _refusing_writes(error: redis.RedisError) -> Check:
    return fault(
        "append-only file",
        "cannot be written",
        f"The broker refuses checks and verdicts: {error}",
        "room on the broker's disk",
    )


def _eviction(name: str, client: redis.Redis, _: Settings) -> Check:
    policy = str(_memory(client)["maxmemory_policy"])
    if policy != "noeviction":
        return fault(
            name,
            policy,
            "When memory is short the broker deletes queues, verdicts and the marks of what was published.",
            "`maxmemory-policy noeviction` in the broker's configuration",
        )
    return ok(name, policy)


def _room(name: str, client: redis.Redis, settings: Settings) -> Check:
    facts = _memory(client)
    limit = int(facts["maxmemory"]) or int(facts["total_system_memory"])
    thumbnail = _THUMBNAIL_BYTES * (settings.thumbnail_side_pixels / _THUMBNAIL_SIDE) ** 2
    needed = int(settings.verdict_stream_max_length * (_EVENT_BYTES + thumbnail))
    seen = f"{settings.verdict_stream_max_length} events need {_mib(needed)} of {_mib(limit)}"
    mend = (
        f"DNF_VERDICT_STREAM_MAX_LENGTH={int(limit / 2 / (_EVENT_BYTES + thumbnail))} or less, or more memory"
    )
    if needed > limit:
        return fault(name, seen, "The broker refuses verdicts before the stream has its length.", mend)
    if needed > limit / 2:
        return warning(name, seen, "Little memory is left for checks that wait.", mend)
    return ok(name, seen)


def _clock(name: str, client: redis.Redis, settings: Settings) -> Check:
    began = time.time()
    seconds, microseconds = client.time()
    ended = time.time()
    server = int(seconds) + int(microseconds) / 1e6
    # The server looked at its clock at some moment between the two.
    apart = max(0.0, began - server, server - ended)
    seen = f"{apart:.1f} s apart"
    if apart > settings.visibility_timeout_seconds / 4:
        return fault(
            name,
            seen,
            "Workers count the visibility timeout by their own clocks: checks are delivered early or late.",
            "time synchronisation (NTP) on both machines",
        )
    if apart > _CLOCK_WARNING_SECONDS:
        return warning(name, seen, "Waits in the queue are measured wrong.", "time synchronisation (NTP)")
    return ok(name, seen)


def _memory(client: redis.Redis) -> dict[str, Any]:
    facts: Any = client.info("memory")
    return dict(facts)


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"


_CHECKS: dict[str, Callable[[str, redis.Redis, Settings], Check]] = {
    "broker version": _version,
    "append-only file": _append_only,
    "eviction": _eviction,
    "memory": _room,
    "broker clock": _clock,
}
