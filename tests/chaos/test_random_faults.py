"""Random faults under load: what is promised holds for every honest check."""

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.chaos.conftest import StartFleet
from tests.chaos.fleet import Fleet
from tests.chaos.malformed import malformed_pictures
from tests.chaos.outcome import in_flight
from tests.chaos.proxy import FaultProxy, StoreProxy
from tests.chaos.random_faults import GroupReader, Producer, RandomFaults, Submission
from tests.chaos.report import Report
from tests.conftest import PATIENCE, MakePicture, RunningWorker
from worker.broker import keys
from worker.broker.dead_letters import DeadLetters
from worker.broker.verdict_stream import Event
from worker.client import Client
from worker.contract.messages import QUEUES, DeadLetter, RejectionEvent
from worker.embedded.seaweedfs import SeaweedFS
from worker.embedded.services import EmbeddedServices
from worker.embedded.valkey import Valkey

SEEDS = [int(seed) for seed in os.environ.get("DNF_CHAOS_SEEDS", "1").split(",")]
SECONDS = float(os.environ.get("DNF_CHAOS_SECONDS", "12"))

HOSTILE_PICTURES = 56
# What may stay of everything that was submitted: in Redis when what expires has expired, and in a worker.
BROKER_GROWTH_BYTES = 1 << 20
WORKER_GROWTH_BYTES = 64 << 20


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    """Provide a broker that writes to its disk before it confirms, as `deploy/redis/serve.sh` starts it."""
    server = Valkey(tmp_path / "valkey", options=["--appendfsync", "always"])
    server.start()
    yield server
    server.stop()


@pytest.fixture
def seaweedfs(services: EmbeddedServices, tmp_path: Path) -> Iterator[SeaweedFS]:
    """Provide a store of the test's own, which it may kill."""
    server = SeaweedFS(tmp_path / "seaweedfs", services.bucket)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def broker_proxy(valkey: Valkey) -> Iterator[FaultProxy]:
    """Provide a proxy before the broker."""
    with FaultProxy(valkey.port) as proxy:
        yield proxy


@pytest.fixture
def store_proxy(seaweedfs: SeaweedFS) -> Iterator[StoreProxy]:
    """Provide a proxy before the store."""
    with StoreProxy(seaweedfs.ports[0]) as proxy:
        yield proxy


@pytest.mark.parametrize("seed", SEEDS)
def test_random_faults_lose_and_double_no_honest_check(
    seed: int,
    fleet: StartFleet,
    client: Client,
    *,
    chaos_environment: dict[str, str],
    valkey: Valkey,
    seaweedfs: SeaweedFS,
    broker_proxy: FaultProxy,
    store_proxy: StoreProxy,
    make_picture: MakePicture,
    tmp_path: Path,
    report: Report,
) -> None:
    """Every honest check has one verdict, which a slow group sees too, and no dead letter; memory is flat."""
    store = seaweedfs.client()
    hostile = {
        f"hostile/{number}": data
        for number, (_, data) in enumerate(malformed_pictures(HOSTILE_PICTURES, seed=seed))
    }
    for key, data in {"good.jpg": make_picture(1), **hostile}.items():
        store.put_object(Bucket=seaweedfs.bucket, Key=key, Body=data)
    variables = {
        "DNF_REDIS_URL": f"redis://127.0.0.1:{broker_proxy.port}/0",
        "DNF_S3_ENDPOINT_URL": f"http://127.0.0.1:{store_proxy.port}",
        "DNF_S3_ACCESS_KEY_ID": seaweedfs.access_key,
        "DNF_S3_SECRET_ACCESS_KEY": seaweedfs.secret_key,
        "DNF_MAX_PIXELS": "1000000",
        "DNF_SHUTDOWN_GRACE_SECONDS": "5",
        "DNF_VERDICT_MIN_AGE_SECONDS": "1",
        "DNF_DEAD_LETTER_STREAM_MAX_LENGTH": "100000",
        # A check meets more deaths and outages here in a minute than the defaults allow it in its life.
        "DNF_MAX_ATTEMPTS": "50",
        "DNF_MAX_RETRIES": "500",
        "NULL_BATCH_SECONDS": "0.05",
    }
    shifted = {**chaos_environment, **variables, "CLOCK_OFFSET_SECONDS": "3600"}
    fleets = [fleet(2, **variables), Fleet(tmp_path, shifted, 1, "tests.workers.shifted_worker")]
    with ExitStack() as stack:
        stack.callback(fleets[1].stop)
        fleets[1].start()
        broker = stack.enter_context(redis.Redis.from_url(valkey.url))
        used_before = _used_bytes(broker)
        spared = fleets[0].workers[0]
        faults = RandomFaults(
            fleets,
            spared=spared,
            valkey=valkey,
            seaweedfs=seaweedfs,
            broker_proxy=broker_proxy,
            store_proxy=store_proxy,
            seed=seed,
        )
        fast, slow = GroupReader(client, "fast"), GroupReader(client, "slow", seconds_per_event=0.2)
        producer = Producer(client, good="good.jpg", hostile=list(hostile), seed=seed)
        for thread in (fast, slow, producer):
            thread.start()
            stack.callback(thread.end)
        faults.inject(SECONDS / 2)
        resident = _resident_bytes(spared)
        faults.inject(SECONDS / 2)
        producer.end()
        slow.catch_up()

        _wait_settled(broker, client, faults, (fast, slow))
        resident = _resident_bytes(spared) - resident
        letters = _dead_letters(client)
        outcome = _Outcome(producer, fast, slow, letters)
        evidence = _evidence(
            [*outcome.lost, *outcome.doubled], broker, client, producer, faults, (fast, slow), fleets
        )
        without_expiry = _keys_without_expiry(broker, client)
        used = _used_when_expired(broker, client, faults) - used_before
    report.add(
        f"seed {seed}, {SECONDS:.0f} s: {faults.injected.total()} faults"
        f" ({', '.join(f'{count} {kind}' for kind, count in sorted(faults.injected.items()))});"
        f" a worker's clock one hour ahead; {len(producer.submitted_again)} honest checks submitted again"
        f" after an error; {len(producer.hostile_entries)} hostile messages,"
        f" {len(producer.hostile)} hostile pictures ({outcome.hostile_answers})",
        "one verdict for each honest check in each of two groups, one slow; no dead letter of an honest one"
        f" ({len(outcome.honest_letters)}); every key expires; memory flat (broker {used >> 10:+} KiB, worker"
        f" {resident >> 20:+} MiB)",
        checks=len(producer.honest),
        answered=len(producer.honest) - len(outcome.lost),
        doubled=len(outcome.doubled),
        delay_seconds=outcome.worst_delay_seconds,
        delay_since="from submission to verdict",
    )
    assert not outcome.honest_letters
    assert not outcome.honest_rejections
    assert not outcome.lost, evidence
    assert not outcome.doubled, evidence
    assert not outcome.hostile_unanswered
    assert slow.events.keys() == fast.events.keys()
    assert not faults.deaths, faults.deaths[0]
    assert not without_expiry
    assert used < BROKER_GROWTH_BYTES
    assert resident < WORKER_GROWTH_BYTES


class _Outcome:
    """What became of the checks of a producer."""

    def __init__(
        self, producer: Producer, fast: GroupReader, slow: GroupReader, letters: list[DeadLetter]
    ) -> None:
        seen, seen_slowly = fast.by_check(), slow.by_check()
        honest = producer.honest
        self.lost = sorted(name for name in honest if name not in seen or name not in seen_slowly)
        #: Honest checks with two events, other than the same one again for a check that was submitted again.
        self.doubled = sorted(
            name
            for name, events in seen.items()
            if (len(events) > 1 and name in honest and name not in producer.submitted_again)
            or len({event.envelope.id for event in events}) > 1
        )
        self.honest_letters = [letter for letter in letters if letter.check_id in honest]
        self.honest_rejections = [
            event.raw
            for name in honest
            for event in seen.get(name, [])
            if isinstance(event.envelope, RejectionEvent)
        ]
        lettered = {letter.check_id for letter in letters}
        self.hostile_unanswered = producer.hostile - seen.keys() - lettered
        entries = sum(letter.check_id not in producer.hostile | honest.keys() for letter in letters)
        if entries != len(producer.hostile_entries):
            self.hostile_unanswered.add(f"{entries} letters for {len(producer.hostile_entries)} entries")
        self._hostile = Counter(
            "rejected" if isinstance(seen[name][0].envelope, RejectionEvent) else "judged"
            for name in producer.hostile
            if name in seen
        ) + Counter(letter.reason for letter in letters if letter.check_id not in honest)
        self.worst_delay_seconds = max(
            _seconds(seen[name][0]) - submission.began for name, submission in honest.items() if name in seen
        )

    @property
    def hostile_answers(self) -> str:
        """How hostile messages and pictures were answered."""
        return ", ".join(f"{count} {answer}" for answer, count in sorted(self._hostile.items()))


def _evidence(  # noqa: PLR0917 - everything that took part
    check_ids: Sequence[str],
    broker: redis.Redis,
    client: Client,
    producer: Producer,
    faults: RandomFaults,
    readers: Sequence[GroupReader],
    fleets: Sequence[Fleet],
) -> str:
    """Return all that is known of checks: submission, faults around it, readers, broker, logs."""
    lines = [line for fleet in fleets for worker in fleet.workers for line in worker.log_lines()]
    stream = client.settings.verdict_stream
    text = []
    for check_id in check_ids:
        submission = producer.honest.get(check_id) or Submission("hostile picture", began=0.0)
        received = {
            reader.group: [event.entry_id for event in reader.by_check().get(check_id, [])]
            for reader in readers
        }
        text += [
            f"check {check_id}: {submission}",
            f"  received by: {received}",
            f"  on the stream: {[e.entry_id for e in client.events(follow=False) if e.check_id == check_id]}",
            f"  record: {broker.exists(keys.published(stream, check_id))}",
            f"  attempts: {broker.hgetall(keys.attempts(check_id))}",
            *(f"  {line}" for line in lines if line.get("check_id") == check_id),
        ]
        confirmed = submission.confirmed or submission.began
        text += [
            f"  {at - confirmed:+.3f} s from its confirmation: {what}"
            for at, what in faults.journal
            if submission.began - 10 < at < confirmed + 10
        ]
    delayed = broker.info("persistence").get("aof_delayed_fsync")
    queued, unacknowledged = in_flight(client)
    text.append(f"{queued} queued, {unacknowledged} unacknowledged")
    return "\n".join([*text, f"aof_delayed_fsync since the last start: {delayed}"])


def _seconds(event: Event) -> float:
    return int(event.entry_id.partition("-")[0]) / 1000


def _wait_settled(
    broker: redis.Redis,
    client: Client,
    faults: RandomFaults,
    readers: Sequence[GroupReader],
) -> None:
    """Wait until nothing is queued or unacknowledged, and every group has acknowledged everything."""
    deadline = time.monotonic() + (60 + SECONDS) * PATIENCE
    while any(in_flight(client)) or any(_behind(broker, reader) for reader in readers):
        if time.monotonic() > deadline:
            behind = [reader.group for reader in readers if _behind(broker, reader)]
            queued, unacknowledged = in_flight(client)
            pytest.fail(f"{queued} queued, {unacknowledged} unacknowledged, groups behind: {behind}")
        faults.tend()
        time.sleep(0.2)


def _behind(broker: redis.Redis, reader: GroupReader) -> bool:
    """Return whether a group has not read or not acknowledged everything; its `lag` may be unknown."""
    if not broker.exists("verdicts"):
        return True
    last: Any = broker.xinfo_stream("verdicts")["last-generated-id"]
    groups: Any = [each for each in broker.xinfo_groups("verdicts") if each["name"] == reader.group.encode()]
    return not groups or groups[0]["last-delivered-id"] != last or bool(groups[0]["pending"])


def _dead_letters(client: Client) -> list[DeadLetter]:
    with closing(DeadLetters.connect(client.settings)) as dead_letters:
        return [stored.dead_letter for stored in dead_letters.read() if stored.dead_letter]


def _keys_without_expiry(broker: redis.Redis, client: Client) -> list[str]:
    """Return the keys that stay for ever, besides the streams, the queues and what kombu keeps of them."""
    permanent = {client.settings.verdict_stream, client.settings.dead_letter_stream, *QUEUES}
    permanent |= {"unacked", "unacked_index", keys.WORKER_RATES}
    names = [key.decode() for key in broker.scan_iter() if broker.ttl(key) == -1]
    return [name for name in names if name not in permanent and not name.startswith("_kombu.binding")]


def _used_when_expired(broker: redis.Redis, client: Client, faults: RandomFaults) -> int:
    """Return the bytes in use when events are trimmed, dead letters dropped and keys expired."""
    with closing(DeadLetters.connect(client.settings)) as dead_letters:
        for stored in list(dead_letters.read()):
            assert dead_letters.drop(stored)
    deadline = time.monotonic() + 30 * PATIENCE
    # The events of the newest acknowledged event's millisecond stay.
    while (length := broker.xlen(client.settings.verdict_stream)) > 10:
        assert time.monotonic() < deadline, f"{length} events that every group acknowledged are not trimmed"
        faults.tend()
        time.sleep(0.2)
    for key in broker.scan_iter():
        if broker.ttl(key) >= 0:
            broker.delete(key)
    return _used_bytes(broker)


def _used_bytes(broker: redis.Redis) -> int:
    return int(broker.info("memory")["used_memory_dataset"])


def _resident_bytes(worker: RunningWorker) -> int:
    lines = Path(f"/proc/{worker.process.pid}/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS")).split()[1])
