"""What waits on the broker: checks, verdicts, dead letters, and the queues of others."""

import time
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import redis

from worker.contract.messages import QUEUES
from worker.operations.doctor.check import Check, ok, warning
from worker.settings import Settings

# kombu keeps the bindings of an exchange under such a key; ours is that of the default queue.
_BINDINGS = "_kombu.binding."
_OUR_EXCHANGES = frozenset({"image-checks", "image-checks.urgent", "image-checks.bulk"})

# Of a full stream, how long an event should stay for consumers that pause.
_SHORTEST_STAY_SECONDS = 3600

# Keys looked at for queues of others: a large database is not walked to its end.
_MOST_BINDINGS = 1000


def _lengths(name: str, client: redis.Redis, settings: Settings) -> Check:
    lengths = {queue: int(_number(client.llen(queue))) for queue in QUEUES}
    held = int(_number(client.hlen("unacked")))
    seen = ", ".join(f"{queue} {length}" for queue, length in lengths.items()) + f"; {held} in work"
    longest = max(lengths.values())
    if longest > 0.8 * settings.max_queue_length:
        return warning(
            name,
            seen,
            f"Producers are refused, or soon will be: the limit is {settings.max_queue_length}.",
            "more workers, or a larger DNF_MAX_QUEUE_LENGTH",
        )
    return ok(name, seen)


def _stay(name: str, client: redis.Redis, settings: Settings) -> Check:
    length = int(_number(client.xlen(settings.verdict_stream)))
    if length < settings.verdict_stream_max_length:
        return ok(name, f"{length} of {settings.verdict_stream_max_length} events")
    oldest: Any = client.xrange(settings.verdict_stream, count=1)
    stay = time.time() - int(oldest[0][0].partition(b"-")[0]) / 1000
    seen = f"{length} events, full; the oldest is {stay:.0f} s old"
    if stay < _SHORTEST_STAY_SECONDS:
        return warning(
            name,
            seen,
            "A consumer that pauses for longer misses verdicts, which are not published a second time.",
            "a larger DNF_VERDICT_STREAM_MAX_LENGTH, if memory allows, and consumers that keep up",
        )
    return ok(name, seen)


def _dead_letters(name: str, client: redis.Redis, settings: Settings) -> Check:
    length = int(_number(client.xlen(settings.dead_letter_stream)))
    if length:
        return warning(
            name,
            f"{length} wait",
            "Their checks have no verdict.",
            "`dnf-worker dead-letters list`, then redrive or drop them",
        )
    return ok(name, "none")


def _others(name: str, client: redis.Redis, _: Settings) -> Check:
    found: Iterable[bytes] = islice(client.scan_iter(f"{_BINDINGS}*", count=1000), _MOST_BINDINGS)
    exchanges = sorted(
        {key.decode(errors="replace").removeprefix(_BINDINGS) for key in found} - _OUR_EXCHANGES
    )
    if exchanges:
        return warning(
            name,
            f"exchanges of others: {', '.join(exchanges[:5])}",
            "Another Celery application keeps its unacknowledged messages with ours; the shorter visibility"
            " timeout of the two rules both.",
            "a database of its own for this application in DNF_REDIS_URL",
        )
    return ok(name, "none in this database")


def _number(reply: Any) -> int:
    return int(reply)


QUEUE_CHECKS: dict[str, Callable[[str, redis.Redis, Settings], Check]] = {
    "queues": _lengths,
    "verdict stream": _stay,
    "dead letters": _dead_letters,
    "other applications": _others,
}
