"""Malformed messages on the queue, a picture that kills its worker, and redriven dead letters."""

import base64
import io
import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import reduce
from itertools import cycle
from operator import getitem
from typing import Any

import pytest
import redis
from PIL import Image

from tests.chaos.conftest import SCALE, StartFleet
from tests.chaos.outcome import submit, wait_for_all
from tests.chaos.report import Report
from tests.conftest import StoreObject
from worker.broker.dead_letters import DeadLetters, RedriveRefusedError
from worker.client import Client
from worker.contract.envelope import encode
from worker.contract.messages import QUEUES
from worker.embedded.startup import free_ports
from worker.embedded.valkey import Valkey

MAX_ATTEMPTS = 3


def _changed(number: int, path: str, value: Any) -> bytes:
    entry = json.loads(encode({"bucket": "uploads", "key": f"{number}.jpg"}, QUEUES[0]))
    *parents, key = path.split(".")
    reduce(getitem, parents, entry)[key] = value
    return json.dumps(entry).encode()


def _body(number: int, text: str) -> bytes:
    return _changed(number, "body", base64.b64encode(f"{text}{' ' * (number % 50)}".encode()).decode())


# Functions that make different malformed entries from different numbers.
KINDS: list[Callable[[int, random.Random], bytes]] = [
    lambda number, chance: b"\xff" + chance.randbytes(number % 200),
    lambda number, chance: encode({"n": number}, QUEUES[0])[: -chance.randrange(1, 300)],
    lambda number, _: json.dumps([number]).encode(),
    lambda number, _: str(number).encode(),
    lambda number, _: json.dumps({"number": number}).encode(),
    lambda number, _: _changed(number, "headers", {"n": number}),
    lambda number, _: b"[" * (2000 + number),
    lambda number, _: _changed(number, "headers.task", f"os.system-{number}"),
    lambda number, _: _changed(number, "headers.task", [number]),
    lambda number, _: _changed(number, "headers.id", number),
    lambda number, _: _changed(number, "headers.eta", f"in {number} days"),
    lambda number, _: _changed(number, "headers.eta", f"{3000 + number % 6000}-01-01T00:00:00+00:00"),
    lambda number, _: _changed(number, "headers.retries", {"number": number}),
    lambda number, _: _changed(number, "headers", number),
    lambda number, _: _changed(number, "properties", [number]),
    lambda number, _: _changed(number, "properties.body_encoding", f"rot{number}"),
    lambda number, _: _changed(number, "content-type", f"application/x-python-serialize-{number}"),
    lambda number, _: _changed(number, "body", f"% no base64 {number}"),
    lambda number, _: _body(number, f"{{{number}]"),
    lambda number, _: _body(number, f"[[{number}], {{}}]"),
    lambda number, _: _body(number, f'[[{{"n": {number}}}], {{}}, {{"chain": [1]}}]'),
    lambda number, _: _body(number, f'[[{{"bucket": "uploads", "key": "", "n": {number}}}], {{}}, null]'),
    lambda number, _: _body(number, f'[[{{"bucket": "uploads", "metadata": {number}}}], {{}}, {{}}]'),
    lambda number, _: _body(number, f'[[], {{"bucket": {number}}}, {{}}]'),
    lambda number, _: _body(number, f'[[{{"b": {{"__type__": "x", "__value__": {number}}}}}], {{}}, {{}}]'),
]


@pytest.fixture
def dead_letters(client: Client) -> Iterator[DeadLetters]:
    """Provide the stream of dead letters."""
    dead_letters = DeadLetters.connect(client.settings)
    yield dead_letters
    dead_letters.close()


def test_2000_malformed_messages_are_dead_lettered_and_end_no_worker(
    fleet: StartFleet,
    client: Client,
    *,
    stored_picture: str,
    valkey: Valkey,
    dead_letters: DeadLetters,
    report: Report,
) -> None:
    """Each has one dead letter; a check behind all of them has its verdict, from the same process."""
    chance = random.Random(4)
    count = 2000 * min(SCALE, 6)
    entries = {KINDS[number % len(KINDS)](number, chance) for number in range(count)}
    assert len(entries) > 0.95 * count
    workers = fleet(1, DNF_DEAD_LETTER_STREAM_MAX_LENGTH=str(count))
    pids = workers.pids()
    with redis.Redis.from_url(valkey.url) as broker:
        for entry, queue in zip(entries, cycle(QUEUES)):
            broker.lpush(queue, entry)
    began = time.monotonic()
    checks = submit(client, [stored_picture], count=1)
    outcome = wait_for_all(client, workers, checks, seconds=0.06 * count, supervise=False)
    took = time.monotonic() - began
    found = [stored.dead_letter for stored in dead_letters.read()]
    report.add(
        "malformed messages on the queue",
        "one dead letter each; the worker lives",
        checks=len(entries) + 1,
        answered=len(found) + len(outcome.events),
        doubled=outcome.doubled,
        delay_seconds=took,
        delay_since="until the good check behind them has its verdict",
    )
    assert outcome.once_each
    assert workers.pids() == pids
    assert len(found) == len(entries)
    assert {dead_letter.reason for dead_letter in found if dead_letter} == {
        "unreadable_entry",
        "unknown_task",
        "malformed_message",
    }


def test_a_picture_that_kills_its_worker_costs_no_other_check_its_verdict(
    fleet: StartFleet,
    client: Client,
    *,
    stored_picture: str,
    store_object: StoreObject,
    dead_letters: DeadLetters,
    report: Report,
) -> None:
    """It is dead-lettered after as many deaths as attempts are allowed; sixty others have verdicts."""
    Image.new("RGB", (64, 64), "white").save(poison := io.BytesIO(), "PNG")
    store_object("chaos/poison.png", poison.getvalue())
    good = submit(client, [stored_picture], count=20)
    poisonous = client.submit(client.settings.upload_bucket, "chaos/poison.png")
    good |= submit(client, [stored_picture], count=40)
    workers = fleet(
        1,
        DNF_MAX_ATTEMPTS=str(MAX_ATTEMPTS),
        DNF_VISIBILITY_TIMEOUT_SECONDS="5",
        DNF_CHECK_DEADLINE_SECONDS="4",
        NULL_POISON="yes",
    )
    began = time.monotonic()
    outcome = wait_for_all(client, workers, good, seconds=120)
    took = time.monotonic() - began
    found = [stored.dead_letter for stored in dead_letters.read() if stored.dead_letter]
    report.add(
        "a picture that kills the process, among 60 good ones",
        f"60 verdicts, one dead letter, {MAX_ATTEMPTS} deaths at most ({len(workers.deaths)} seen)",
        checks=len(good) + 1,
        answered=len(outcome.events) + len(found),
        doubled=outcome.doubled,
        delay_seconds=took,
        delay_since="until all are answered",
    )
    assert outcome.once_each
    (dead_letter,) = found
    assert (dead_letter.check_id, dead_letter.reason) == (poisonous, "too_many_attempts")
    assert dead_letter.attempts == MAX_ATTEMPTS
    assert len(workers.deaths) == MAX_ATTEMPTS
    isolated = workers.events("check_isolated")
    assert poisonous in {line["check_id"] for line in isolated}


def test_dead_letters_redriven_twice_have_one_verdict_each(
    fleet: StartFleet, client: Client, stored_picture: str, dead_letters: DeadLetters
) -> None:
    """Dead-lettered while the store was unreachable, they are redriven by two operators at once."""
    checks = submit(client, [stored_picture], count=20)
    without_store = fleet(1, DNF_S3_ENDPOINT_URL=f"http://127.0.0.1:{free_ports(1)[0]}", DNF_MAX_RETRIES="0")
    without_store.workers[0].wait_for_event("check_dead_lettered", count=len(checks))
    without_store.stop()
    found = list(dead_letters.read())
    assert {stored.dead_letter and stored.dead_letter.reason for stored in found} == {"storage_unavailable"}
    for stored in found * 2:
        with suppress(RedriveRefusedError):
            dead_letters.redrive(stored)
    assert wait_for_all(client, fleet(1), checks, seconds=60).once_each
    assert list(dead_letters.read()) == []
