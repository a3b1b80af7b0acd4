"""What a client raises."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, islice

import redis

from worker.broker.faults import connection_fault
from worker.broker.verdict_stream import Event
from worker.contract.messages import DeadLetter
from worker.settings import BrokerSettings

# Checks that a message names; the attributes of the error name all.
_NAMED_CHECKS = 5


class QueueUnreachableError(ConnectionError):
    """The broker cannot be reached within the client's time limit, or refuses; `str()` says why."""


class QueueFullError(Exception):
    """The queue holds as many checks as it may; nothing was enqueued."""


class UnknownQueueError(ValueError):
    """There is no queue of this name, from which no worker would take; nothing was enqueued."""


@dataclass(frozen=True)
class Retry:
    """Why a check was last retried, as its worker noted it."""

    #: One of `worker.telemetry.metrics.RetryReason`, or a later version's.
    reason: str
    #: The reason in words, for people.
    detail: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class NoVerdictError(Exception):
    """Some awaited checks have no event; `str()` names the first of them."""

    #: Events of the others, by check id.
    found: Mapping[str, Event]
    #: Dead letters, by check id.
    dead_letters: Mapping[str, DeadLetter]
    #: Check ids that had neither in time.
    missing: frozenset[str]
    #: Why missing checks were last retried, by check id; one that is not here had no failed attempt.
    retries: Mapping[str, Retry]

    def __init__(
        self,
        found: Mapping[str, Event],
        dead_letters: Mapping[str, DeadLetter],
        missing: Collection[str],
        retries: Mapping[str, Retry] | None = None,
    ) -> None:
        self.found = found
        self.dead_letters = dead_letters
        self.missing = frozenset(missing)
        self.retries = retries or {}
        super().__init__("; ".join(self._parts()))

    def _parts(self) -> Iterable[str]:
        dead = (
            f"{check_id}: {dead_letter.reason} ({dead_letter.detail})"
            for check_id, dead_letter in self.dead_letters.items()
        )
        # Those with a known reason first.
        missing = sorted(self.missing, key=lambda check_id: (check_id not in self.retries, check_id))
        late = (
            f"{check_id}: no verdict in time"
            + (f", retried for {self.retries[check_id]}" if check_id in self.retries else "")
            for check_id in missing
        )
        yield from islice(chain(dead, late), _NAMED_CHECKS)
        if (others := len(self.dead_letters) + len(self.missing) - _NAMED_CHECKS) > 0:
            yield f"{others} more"


def unreachable(error: BaseException, broker: BrokerSettings, *, seconds: float) -> QueueUnreachableError:
    """Return the error for a caller; finding its cause takes `seconds` at most."""
    # A connection and a handshake.
    if fault := connection_fault(error, broker, seconds=seconds / 2):
        return QueueUnreachableError(str(fault))
    encrypted = broker.url.get_secret_value().startswith("rediss:")
    silent = isinstance(error, redis.TimeoutError | TimeoutError)
    hint = " (a port without TLS needs a redis:// URL)" if encrypted and silent else ""
    return QueueUnreachableError(f"Redis cannot be reached: {error}{hint}")
