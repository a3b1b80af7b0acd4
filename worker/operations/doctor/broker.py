"""Diagnose the broker: authentication, version, persistence, memory, clock, and what waits on it."""

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import redis

from worker.broker.connection import connect
from worker.broker.faults import FaultName, connection_fault, server_faults
from worker.contract.messages import QUEUES
from worker.operations.doctor.diagnosis import Diagnosis, fault, ok, warning
from worker.settings import Settings

# The first version with XAUTOCLAIM, which consumers use.
_MIN_VERSION = (6, 2)

# Size of an event without its thumbnail, and of a thumbnail of 128 x 128 pixels.
_EVENT_BYTES, _THUMBNAIL_BYTES, _THUMBNAIL_SIDE = 3_000, 20_000, 128

_CLOCK_WARNING_SECONDS = 2.0
# A full stream should retain events for at least this long, so that consumers can pause.
_MIN_RETENTION_SECONDS = 3600
_QUEUE_WARNING_SHARE = 0.8

# kombu stores the bindings of an exchange under this prefix; each of our queues has an exchange of its name.
_BINDINGS_PREFIX = "_kombu.binding."
# Only this many bindings are read, so that a large database is not scanned to its end.
_MAX_BINDINGS = 1000

_SYNCHRONISE = "Synchronise both clocks (NTP)."


def diagnose_broker(settings: Settings) -> Iterator[Diagnosis]:
    """Yield the diagnoses; only the first when the broker is unreachable or cannot write to its disk."""
    with connect(settings.broker, timeout_seconds=5, retries=0) as client:
        try:
            client.ping()
        except redis.RedisError as error:
            if str(error).startswith("MISCONF"):
                # A server with a full disk refuses every command, even a ping.
                yield ok("broker", "answers")
                yield _append_only("append-only file", client, settings)
            elif found := connection_fault(error, settings.broker):
                yield fault("broker", "no access", found.detail, found.remedy)
            else:
                yield fault(
                    "broker",
                    "no answer",
                    str(error),
                    "Set DNF_REDIS_URL to a broker that accepts connections.",
                )
            return
        encrypted = settings.redis_url.get_secret_value().startswith("rediss:")
        yield ok("broker", f"answers{', encrypted' if encrypted else ''}")
        for name, diagnostic in _DIAGNOSTICS.items():
            try:
                yield diagnostic(name, client, settings)
            except redis.exceptions.NoPermissionError as error:
                yield warning(
                    name,
                    "not permitted for this user",
                    str(error),
                    "Run the doctor as the ACL user `operator`.",
                )
            except redis.RedisError as error:
                yield fault(name, "no answer", str(error), "Read the broker's log.")


def _version(name: str, client: redis.Redis, _: Settings) -> Diagnosis:
    facts: Any = client.info("server")
    version = str(facts["redis_version"])
    product = f"Valkey {facts['valkey_version']}, " if "valkey_version" in facts else ""
    observed = f"{product}Redis {version}"
    if tuple(int(part) for part in version.split(".")[:2]) < _MIN_VERSION:
        return fault(
            name,
            observed,
            "Consumers cannot claim events of other consumers.",
            "Upgrade to Redis 6.2 or Valkey.",
        )
    return ok(name, observed)


def _append_only(name: str, client: redis.Redis, _: Settings) -> Diagnosis:
    faults: dict[FaultName, str] = {"disk_full": "cannot be written", "not_durable": "off"}
    return _server_fault(name, client, faults) or ok(name, "on")


def _role(name: str, client: redis.Redis, _: Settings) -> Diagnosis:
    faults: dict[FaultName, str] = {"read_only": "replica", "cluster_mode": "cluster"}
    return _server_fault(name, client, faults) or ok(name, "primary")


def _eviction(name: str, client: redis.Redis, _: Settings) -> Diagnosis:
    policy = str(_memory_facts(client)["maxmemory_policy"])
    return _server_fault(name, client, {"evicting": policy}) or ok(name, policy)


def _memory(name: str, client: redis.Redis, settings: Settings) -> Diagnosis:
    facts = _memory_facts(client)
    limit = int(facts["maxmemory"]) or int(facts["total_system_memory"])
    thumbnail = _THUMBNAIL_BYTES * (settings.thumbnail_side_pixels / _THUMBNAIL_SIDE) ** 2
    needed = int(settings.verdict_stream_max_length * (_EVENT_BYTES + thumbnail))
    observed = f"{settings.verdict_stream_max_length} events need {_mib(needed)} of {_mib(limit)}"
    longest = int(limit / 2 / (_EVENT_BYTES + thumbnail))
    remedy = f"Set DNF_VERDICT_STREAM_MAX_LENGTH to at most {longest}, or add memory."
    if full := _server_fault(name, client, {"memory_full": observed}):
        return full
    if needed > limit:
        return fault(name, observed, "The broker refuses verdicts before the stream is full.", remedy)
    if needed > limit / 2:
        return warning(name, observed, "Little memory is left for waiting checks.", remedy)
    return ok(name, observed)


def _clock(name: str, client: redis.Redis, settings: Settings) -> Diagnosis:
    before = time.time()
    seconds, microseconds = client.time()
    after = time.time()
    server = int(seconds) + int(microseconds) / 1e6
    # The server read its clock at some time between the two readings.
    difference = max(0.0, before - server, server - after)
    observed = f"{difference:.1f} s apart"
    if difference > settings.visibility_timeout_seconds / 4:
        return fault(
            name,
            observed,
            "Workers time the visibility timeout by their own clocks: checks are redelivered early or late.",
            _SYNCHRONISE,
        )
    if difference > _CLOCK_WARNING_SECONDS:
        return warning(name, observed, "Waiting times in the queue are measured wrongly.", _SYNCHRONISE)
    return ok(name, observed)


def _queues(name: str, client: redis.Redis, settings: Settings) -> Diagnosis:
    lengths = {queue: _integer(client.llen(queue)) for queue in QUEUES}
    unacknowledged = _integer(client.hlen("unacked"))
    observed = ", ".join(f"{queue} {length}" for queue, length in lengths.items())
    observed += f"; {unacknowledged} unacknowledged"
    if max(lengths.values()) > _QUEUE_WARNING_SHARE * settings.max_queue_length:
        return warning(
            name,
            observed,
            f"Producers are refused, or soon will be: the limit is {settings.max_queue_length}.",
            "Add workers, or raise DNF_MAX_QUEUE_LENGTH.",
        )
    return ok(name, observed)


def _verdict_stream(name: str, client: redis.Redis, settings: Settings) -> Diagnosis:
    length = _integer(client.xlen(settings.verdict_stream))
    if length < settings.verdict_stream_max_length:
        return ok(name, f"{length} of {settings.verdict_stream_max_length} events")
    oldest: Any = client.xrange(settings.verdict_stream, count=1)
    retention = time.time() - int(oldest[0][0].partition(b"-")[0]) / 1000
    observed = f"full with {length} events; the oldest is {retention:.0f} s old"
    if retention < _MIN_RETENTION_SECONDS:
        return warning(
            name,
            observed,
            "A consumer that pauses for longer misses verdicts; they are not published a second time.",
            "Raise DNF_VERDICT_STREAM_MAX_LENGTH if memory allows, and make consumers keep up.",
        )
    return ok(name, observed)


def _dead_letters(name: str, client: redis.Redis, settings: Settings) -> Diagnosis:
    length = _integer(client.xlen(settings.dead_letter_stream))
    if length:
        return warning(
            name,
            f"{length} on the stream",
            "Their checks have no verdict.",
            "Run `dnf-worker dead-letters list`, then redrive or drop them.",
        )
    return ok(name, "none")


def _other_applications(name: str, client: redis.Redis, _: Settings) -> Diagnosis:
    keys: Iterable[bytes] = islice(client.scan_iter(f"{_BINDINGS_PREFIX}*", count=1000), _MAX_BINDINGS)
    exchanges = sorted(
        {key.decode(errors="replace").removeprefix(_BINDINGS_PREFIX) for key in keys} - {*QUEUES}
    )
    if exchanges:
        return warning(
            name,
            f"exchanges of other applications: {', '.join(exchanges[:5])}",
            "Another Celery application keeps its unacknowledged messages together with ours; the shorter of"
            " the two visibility timeouts applies to both.",
            "Give this application a Redis database of its own in DNF_REDIS_URL.",
        )
    return ok(name, "none in this database")


def _server_fault(name: str, client: redis.Redis, observed: dict[FaultName, str]) -> Diagnosis | None:
    """Return the first server fault that `observed` names, with that observation."""
    for found in server_faults(client):
        if found.name in observed:
            return fault(name, observed[found.name], found.detail, found.remedy)
    return None


def _memory_facts(client: redis.Redis) -> dict[str, Any]:
    facts: Any = client.info("memory")
    return dict(facts)


def _integer(reply: Any) -> int:
    return int(reply)


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"


_DIAGNOSTICS: dict[str, Callable[[str, redis.Redis, Settings], Diagnosis]] = {
    "broker version": _version,
    "broker role": _role,
    "append-only file": _append_only,
    "eviction": _eviction,
    "memory": _memory,
    "broker clock": _clock,
    "queues": _queues,
    "verdict stream": _verdict_stream,
    "dead letters": _dead_letters,
    "other applications": _other_applications,
}
