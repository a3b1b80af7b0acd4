"""The outcome of a test's checks: the events of each, and how long after the fault they came."""

import base64
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis

from tests.chaos.fleet import Fleet
from tests.conftest import PATIENCE
from worker.client import Client
from worker.contract.messages import ImageCheck, RejectionEvent
from worker.process.run import message_counts


@dataclass
class Outcome:
    """The events of a test's checks; `answered_at` is the server's time of each check's first event."""

    checks: Mapping[str, ImageCheck]
    events: Counter[str] = field(default_factory=Counter)
    answered_at: dict[str, float] = field(default_factory=dict)
    rejections: Counter[str] = field(default_factory=Counter)
    submitted_again: int = 0

    @property
    def missing(self) -> set[str]:
        """The checks without an event."""
        return set(self.checks) - self.events.keys()

    @property
    def doubled(self) -> int:
        """The number of events beyond the first of each check."""
        return self.events.total() - len(self.events)

    @property
    def once_each(self) -> bool:
        """Whether every check has exactly one event, and there are no other events."""
        return self.events == Counter(list(self.checks))

    def last_since(self, recovered: float) -> tuple[float, str]:
        """Return the seconds from a recovery to the last verdict, and how many verdicts came in between.

        `recovered` is in seconds since 1970.
        """
        delays = [at - recovered for name, at in self.answered_at.items() if name in self.checks]
        waited = [delay for delay in delays if delay > 0]
        return max(waited), f"to the last of {len(waited):,} verdicts"


class Faults:
    """When something was broken, and which checks were in flight then."""

    def __init__(self, broker_url: str) -> None:
        self._broker_url = broker_url
        self._faults: list[tuple[float, set[str]]] = []

    def record(self) -> None:
        """Record a fault at this moment. The broker must answer."""
        with redis.Redis.from_url(self._broker_url) as broker:
            self._faults.append((time.time(), set(_unacknowledged(broker))))

    def worst_delay_seconds(self, outcome: Outcome) -> float:
        """Return the longest time to a check's event from the last fault at which it was in flight."""
        last = {name: at for at, in_flight in self._faults for name in in_flight}
        delays = [outcome.answered_at[name] - at for name, at in last.items() if name in outcome.answered_at]
        assert delays, "nothing was in flight at a fault"
        return max(0.0, *delays)


def _unacknowledged(broker: redis.Redis) -> Iterable[str]:
    notes: Any = broker.hvals("unacked")
    for value in notes:
        body = json.loads(base64.b64decode(json.loads(value)[0]["body"]))
        yield body[0][0]["check_id"]


def submit(client: Client, keys: Iterable[str], *, count: int) -> dict[str, ImageCheck]:
    """Submit `count` checks of the stored pictures in turn; return them by id."""
    names = list(keys)
    bucket = client.settings.upload_bucket
    checks = [ImageCheck(bucket=bucket, key=names[number % len(names)]) for number in range(count)]
    client.submit_many(checks)
    return {check.check_id: check for check in checks}


def waiting(client: Client) -> int:
    """Return the number of messages on the queues."""
    return in_flight(client)[0]


def in_flight(client: Client) -> tuple[int, int]:
    """Return the numbers of messages on the queues and of unacknowledged ones, both at one moment."""
    with redis.Redis.from_url(client.settings.redis_url.get_secret_value()) as broker:
        unacknowledged, *queued = message_counts(broker)
    return sum(queued), unacknowledged


def wait_for_share(client: Client, checks: Mapping[str, ImageCheck], share: float) -> None:
    """Wait until a share of the checks has events, so that a fault occurs under load."""
    deadline = time.monotonic() + (60 + len(checks) / 10) * PATIENCE
    with redis.Redis.from_url(client.settings.redis_url.get_secret_value()) as broker:
        while int(broker.xlen(client.settings.verdict_stream)) < share * len(checks):  # type: ignore[arg-type]
            assert time.monotonic() < deadline, "too few events"
            time.sleep(0.05)


def wait_for_all(
    client: Client,
    fleet: Fleet,
    checks: Mapping[str, ImageCheck],
    *,
    seconds: float,
    supervise: bool = True,
    submit_again: bool = False,
) -> Outcome:
    """Wait until every check has an event and no message is queued or unacknowledged.

    With `submit_again` a check that the broker lost is submitted again under its id, as a producer does
    after a while without an event.
    """
    deadline = time.monotonic() + seconds * PATIENCE
    outcome, read = Outcome(checks), "0-0"
    while True:
        if supervise:
            fleet.supervise()
        # Counted before the events are read: if there are none, no further event can come.
        queued, unacknowledged = in_flight(client)
        for event in client.events(since=read, follow=False):
            read = event.entry_id
            outcome.events[event.check_id] += 1
            outcome.answered_at.setdefault(event.check_id, int(read.partition("-")[0]) / 1000)
            if isinstance(event.envelope, RejectionEvent):
                outcome.rejections[event.envelope.data.reason] += 1
        idle = not queued and not unacknowledged
        if idle and not outcome.missing:
            return outcome
        if idle and submit_again:
            outcome.submitted_again += len(outcome.missing)
            client.submit_many([checks[name] for name in outcome.missing])
        if time.monotonic() > deadline:
            pytest.fail(
                f"after {seconds:.0f} seconds {len(outcome.missing)} of {len(checks)} checks have no"
                f" event; {queued} are queued, {unacknowledged} unacknowledged\n"
                + fleet.workers[0].log.read_text()[-3000:]
            )
        time.sleep(0.2)
