"""Diagnose the broker: authentication, version, persistence, memory, clock, and what waits on it."""

import time
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Any

import redis

from worker.broker.connection import connect
from worker.broker.consumer_groups import consumer_groups
from worker.broker.faults import MEMORY_LIMIT, FaultName, connection_fault, server_faults
from worker.broker.keys import UNACKED, WORKERS_ALIVE
from worker.contract.messages import QUEUES
from worker.operations.capacity import EVENT_BYTES
from worker.operations.doctor.diagnosis import Diagnosis, fault, ok, warning
from worker.process.heartbeat import ALIVE_SECONDS
from worker.settings import Settings

# The first version with XAUTOCLAIM, which consumers use.
_MIN_VERSION = (6, 2)

_CLOCK_WARNING_SECONDS = 2.0
# Share of a limit beyond which it is near.
_NEAR_SHARE = 0.8
# Shares of the retention: an event that waits for longer needs attention, and is about to be deleted.
_WAITING_SHARE, _EXPIRING_SHARE = 0.5, 0.9

# kombu stores the bindings of an exchange under this prefix; each of our queues has an exchange of its name.
_BINDINGS_PREFIX = "_kombu.binding."
# A scan of the key space ends after it; a large database is then seen in part.
_SCAN_SECONDS = 10.0
# Where Celery puts tasks that name no queue.
_CELERYS_QUEUE = "celery"
# How alike two names of queues are, 0..1, when one may be the other misspelt.
_LIKENESS = 0.75

# What a broker loses of what it has confirmed, by its `appendfsync`.
_LOSSES = {
    "everysec": "Killed while its disk is slow, or with its machine, the broker loses the last seconds.",
    "no": "When its machine loses power, the broker loses the last half minute.",
}

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
    if found := _server_fault(name, client, faults):
        return found
    policy = _appendfsync(client)
    if harm := _LOSSES.get(policy or ""):
        return warning(name, f"appendfsync {policy}", harm, "Set appendfsync to always.")
    return ok(name, f"appendfsync {policy}" if policy else "on")


def _role(name: str, client: redis.Redis, _: Settings) -> Diagnosis:
    faults: dict[FaultName, str] = {"read_only": "replica", "cluster_mode": "cluster"}
    return _server_fault(name, client, faults) or ok(name, "primary")


def _eviction(name: str, client: redis.Redis, _: Settings) -> Diagnosis:
    policy = str(_memory_facts(client)["maxmemory_policy"])
    return _server_fault(name, client, {"evicting": policy}) or ok(name, policy)


def _memory(name: str, client: redis.Redis, settings: Settings) -> Diagnosis:
    facts = _memory_facts(client)
    limit = int(facts["maxmemory"]) or int(facts["total_system_memory"])
    needed = settings.verdict_stream_max_length * EVENT_BYTES
    observed = f"{_mib(int(facts['used_memory']))} of {_mib(limit)} used; {_mib(needed)} for a full stream"
    usable = MEMORY_LIMIT * limit
    remedy = f"Set DNF_VERDICT_STREAM_MAX_LENGTH to at most {int(usable / 2 / EVENT_BYTES)}, or add memory."
    if full := _server_fault(name, client, {"memory_full": observed, "memory_low": observed}):
        return full
    if needed > usable:
        return fault(name, observed, "Workers take no checks before the verdict stream is full.", remedy)
    if needed > usable / 2:
        return warning(name, observed, "Little memory is left for checks and records.", remedy)
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
    unacknowledged = _integer(client.hlen(UNACKED))
    observed = ", ".join(f"{queue} {length}" for queue, length in lengths.items())
    observed += f"; {unacknowledged} unacknowledged"
    if max(lengths.values()) > _NEAR_SHARE * settings.max_queue_length:
        return warning(
            name,
            observed,
            f"Producers are refused, or soon will be: the limit is {settings.max_queue_length}.",
            "Add workers, or raise DNF_MAX_QUEUE_LENGTH.",
        )
    return ok(name, observed)


def _workers(name: str, client: redis.Redis, _: Settings) -> Diagnosis:
    now: Any = client.time()
    alive = _integer(client.zcount(WORKERS_ALIVE, int(now[0]) - ALIVE_SECONDS, "+inf"))
    waiting = sum(_integer(client.llen(queue)) for queue in QUEUES)
    if alive:
        return ok(name, f"{alive} took checks within {ALIVE_SECONDS} s")
    if waiting:
        return warning(
            name,
            f"none, and {waiting} checks wait",
            "No check is answered.",
            "Start workers (`dnf-worker run`), or read the end of their logs. A worker whose model hangs does"
            " not count.",
        )
    return ok(name, "none, and no check waits")


def _other_queues(name: str, client: redis.Redis, _: Settings) -> Diagnosis:
    # kombu's list of a priority has the queue's name before two control characters.
    lists = {key.partition("\x06")[0] for key in _scan(client, type_of="list")} - {*QUEUES}
    misspelt = {
        found: similar[0]
        for found in sorted(lists)
        if (similar := get_close_matches(found, QUEUES, n=1, cutoff=_LIKENESS))
    }
    if misspelt:
        return warning(
            name,
            ", ".join(found[:100] for found in misspelt),
            f"Their tasks are never taken: {', '.join(QUEUES)} are the queues.",
            f"Let the producer send to {next(iter(misspelt.values()))}.",
        )
    if _CELERYS_QUEUE in lists:
        return warning(
            name,
            _CELERYS_QUEUE,
            "Tasks that name no queue are there; if they are checks, they are never taken.",
            f'Let the producer name the queue: send_task(..., queue="{QUEUES[0]}").',
        )
    return ok(name, "none that look like ours")


def _verdict_stream(name: str, client: redis.Redis, settings: Settings) -> Diagnosis:
    length, limit = _integer(client.xlen(settings.verdict_stream)), settings.verdict_stream_max_length
    observed = f"{length} of {limit} events"
    if length < _NEAR_SHARE * limit:
        return ok(name, observed)
    oldest: Any = client.xrange(settings.verdict_stream, count=1)
    now: Any = client.time()
    age = max(0.0, int(now[0]) - int(oldest[0][0].partition(b"-")[0]) / 1000)
    observed += f"; the oldest is {_duration(age)} old"
    remedy = "Let the slowest group catch up, or remove it: see `consumer groups`."
    if length >= limit:
        return fault(name, observed, "Workers take no checks.", remedy)
    return warning(name, observed, "When it is full, workers take no checks.", remedy)


def _consumer_groups(name: str, client: redis.Redis, settings: Settings) -> Diagnosis:
    seconds, _ = client.time()
    groups = consumer_groups(client, settings.verdict_stream)
    ages = {
        group.name: max(0.0, int(seconds) - group.waiting_since) if group.waiting_since else 0.0
        for group in groups
    }
    retention = settings.verdict_retention_seconds
    late = {group: age for group, age in ages.items() if age > _WAITING_SHARE * retention}
    if not late:
        waits = [f"{group} {_duration(age)}" if age else f"{group} none" for group, age in ages.items()]
        return ok(name, f"oldest event without acknowledgement: {', '.join(waits)}" if waits else "none")
    observed = ", ".join(f"{group} leaves an event for {_duration(age)}" for group, age in late.items())
    report = fault if max(late.values()) > _EXPIRING_SHARE * retention else warning
    return report(
        name,
        observed,
        f"After {_duration(retention)} (DNF_VERDICT_RETENTION_SECONDS) it is deleted, acknowledged or not.",
        "Start members of the group, raise that setting, or remove the group with XGROUP DESTROY.",
    )


def _dead_letters(name: str, client: redis.Redis, settings: Settings) -> Diagnosis:
    length, limit = _integer(client.xlen(settings.dead_letter_stream)), settings.dead_letter_stream_max_length
    remedy = "Run `dnf-worker dead-letters list`, then redrive or drop them."
    if length >= limit:
        return fault(name, f"{length}; the limit is {limit}", "Workers take no checks.", remedy)
    if length:
        return warning(name, f"{length} on the stream", "Their checks have no verdict.", remedy)
    return ok(name, "none")


def _other_applications(name: str, client: redis.Redis, _: Settings) -> Diagnosis:
    bindings = _scan(client, match=f"{_BINDINGS_PREFIX}*")
    exchanges = sorted({key.removeprefix(_BINDINGS_PREFIX) for key in bindings} - {*QUEUES})
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


def _appendfsync(client: redis.Redis) -> str | None:
    """Return when the server writes its append-only file to the disk; None where it does not tell.

    Users of the ACL file may not ask, since a server's configuration has passwords: a refusal would be in its
    log. Managed services have no such command.
    """
    if client.get_connection_kwargs().get("username"):
        return None
    try:
        return client.config_get("appendfsync").get("appendfsync")
    except redis.ResponseError:
        return None


def _scan(client: redis.Redis, *, match: str | None = None, type_of: str | None = None) -> set[str]:
    """Return the keys of a pattern or type, as far as `_SCAN_SECONDS` lead."""
    until = time.monotonic() + _SCAN_SECONDS
    found: set[str] = set()
    cursor = 0
    while True:
        reply: Any = client.scan(cursor, match=match, count=1000, _type=type_of)
        cursor, keys = reply
        found.update(key.decode(errors="replace") for key in keys)
        if not cursor or time.monotonic() > until:
            return found


def _memory_facts(client: redis.Redis) -> dict[str, Any]:
    facts: Any = client.info("memory")
    return dict(facts)


def _integer(reply: Any) -> int:
    return int(reply)


def _duration(seconds: float) -> str:
    """Return a time in its largest whole unit, for people."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"


_DIAGNOSTICS: dict[str, Callable[[str, redis.Redis, Settings], Diagnosis]] = {
    "broker version": _version,
    "broker role": _role,
    "append-only file": _append_only,
    "eviction": _eviction,
    "memory": _memory,
    "broker clock": _clock,
    "workers": _workers,
    "queues": _queues,
    "other queues": _other_queues,
    "verdict stream": _verdict_stream,
    "consumer groups": _consumer_groups,
    "dead letters": _dead_letters,
    "other applications": _other_applications,
}
