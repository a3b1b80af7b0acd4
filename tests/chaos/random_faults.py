"""Random faults, load and consumers for a while; the same seed draws the same faults."""

import gzip
import json
import random
import signal
import threading
import time
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import redis

from tests.chaos.fleet import Fleet
from tests.chaos.outcome import waiting
from tests.chaos.proxy import FaultProxy, StoreProxy
from tests.chaos.test_hostile_messages import KINDS as HOSTILE_ENTRIES
from tests.conftest import RunningWorker
from worker.broker.connection import connect
from worker.broker.verdict_stream import Event
from worker.client import Client, QueueUnreachableError
from worker.contract.envelope import encode
from worker.contract.messages import QUEUES, ImageCheck
from worker.embedded.guarded_process import GuardedProcess
from worker.embedded.seaweedfs import SeaweedFS
from worker.embedded.valkey import Valkey

# Ends with the process that replaces the one that was killed or shut down.
UNTIL_RESTARTED = float("inf")


class RandomFaults:
    """Faults of workers, broker, store and connections, one every second or so, each kind as often as others.

    `spared` is neither killed nor shut down, so that its memory can be compared.
    """

    def __init__(
        self,
        fleets: Sequence[Fleet],
        *,
        spared: RunningWorker,
        valkey: Valkey,
        seaweedfs: SeaweedFS,
        broker_proxy: FaultProxy,
        store_proxy: StoreProxy,
        seed: int,
    ) -> None:
        self.injected = Counter[str]()
        #: Exit status and last lines of each worker that ended without a signal of ours.
        self.deaths: list[str] = []
        #: When each fault began and ended, in seconds since 1970.
        self.journal: list[tuple[float, str]] = []
        self._workers = [worker for fleet in fleets for worker in fleet.workers]
        self._spared = spared
        self._valkey = valkey
        self._seaweedfs = seaweedfs
        self._broker_proxy = broker_proxy
        self._store_proxy = store_proxy
        self._random = random.Random(seed)
        self._signalled: set[int] = set()
        # What is broken at present, until when, and how it is recovered.
        self._broken: dict[object, tuple[float, Callable[[], object]]] = {}
        self._kinds: dict[str, Callable[[], bool]] = {
            "worker SIGKILL": partial(self._end_worker, signal.SIGKILL),
            "worker SIGTERM": partial(self._end_worker, signal.SIGTERM),
            "worker SIGSTOP": self._suspend_worker,
            "broker SIGKILL": partial(self._kill_server, valkey, 1.5),
            "broker SIGSTOP": partial(self._suspend_server, valkey, 7.0),
            "store SIGKILL": partial(self._kill_server, seaweedfs, 2.0),
            "store SIGSTOP": partial(self._suspend_server, seaweedfs, 5.0),
            "store errors": self._store_errors,
            "CLIENT KILL": self._kill_clients,
            "connections reset": self._reset_connections,
            "connections frozen": self._freeze_connections,
        }

    def inject(self, seconds: float) -> None:
        """Break and recover for so long; what is broken at the end recovers then."""
        end, next_at, drawn = time.monotonic() + seconds, 0.0, list[str]()
        while time.monotonic() < end:
            self.tend()
            if time.monotonic() >= next_at:
                drawn = drawn or self._random.sample(sorted(self._kinds), len(self._kinds))
                kind = drawn.pop()
                if self._kinds[kind]():
                    self.injected[kind] += 1
                    self.journal.append((time.time(), kind))
                next_at = time.monotonic() + self._random.uniform(0.3, 2.0)
            time.sleep(0.05)
        for thing in list(self._broken):
            self._recover(thing)
        self.tend()

    def tend(self) -> None:
        """Recover what is due, and replace the workers that ended."""
        for thing, (due, _) in list(self._broken.items()):
            if time.monotonic() >= due:
                self._recover(thing)
        for worker in self._workers:
            if worker.guarded is not None and not worker.guarded.alive:
                if worker.process.pid not in self._signalled:
                    self.deaths.append(f"status {worker.process.returncode}:\n{worker.guarded.tail(30)}")
                worker.kill()  # ends its guard
                worker.launch()
                self._broken.pop(worker, None)

    def _recover(self, thing: object) -> None:
        _, recover = self._broken.pop(thing)
        recover()
        server = f", server {run_id(self._valkey.url)}" if thing is self._valkey else ""
        self.journal.append((time.time(), f"{type(thing).__name__} recovered{server}"))

    def _break(self, thing: object, seconds: float, recover: Callable[[], object]) -> bool:
        self._broken[thing] = time.monotonic() + seconds, recover
        return True

    def _free_worker(self, besides: Collection[RunningWorker] = ()) -> RunningWorker | None:
        free = [each for each in self._workers if each not in self._broken and each not in besides]
        return self._random.choice(free) if free else None

    def _end_worker(self, number: signal.Signals) -> bool:
        worker = self._free_worker(besides=[self._spared])
        if worker is None:
            return False
        self._signalled.add(worker.process.pid)
        worker.process.send_signal(number)
        return self._break(worker, UNTIL_RESTARTED, lambda: None)

    def _suspend_worker(self) -> bool:
        worker = self._free_worker()
        return worker is not None and self._suspend(worker, worker.process, 8.0)

    def _suspend_server(self, server: Valkey | SeaweedFS, longest_seconds: float) -> bool:
        assert server.process is not None
        return server not in self._broken and self._suspend(server, server.process, longest_seconds)

    def _suspend(self, thing: object, process: Any, longest_seconds: float) -> bool:
        send = process.signal if isinstance(process, GuardedProcess) else process.send_signal
        send(signal.SIGSTOP)
        return self._break(thing, self._random.uniform(0.3, longest_seconds), lambda: send(signal.SIGCONT))

    def _kill_server(self, server: Valkey | SeaweedFS, longest_seconds: float) -> bool:
        if server in self._broken:
            return False
        server.kill()
        return self._break(server, self._random.uniform(0.1, longest_seconds), server.start)

    def _store_errors(self) -> bool:
        proxy = self._store_proxy
        if proxy in self._broken:
            return False
        proxy.error_share, proxy.cut_share, proxy.latency_seconds = 0.4, 0.05, 0.1

        def recover() -> None:
            proxy.error_share = proxy.cut_share = proxy.latency_seconds = 0.0

        return self._break(proxy, self._random.uniform(0.5, 4.0), recover)

    def _kill_clients(self) -> bool:
        if self._valkey in self._broken:
            return False
        with redis.Redis.from_url(self._valkey.url) as admin:
            admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        return True

    def _reset_connections(self) -> bool:
        self._broker_proxy.reset()
        self._store_proxy.reset()
        return True

    def _freeze_connections(self) -> bool:
        proxy = self._broker_proxy
        if proxy in self._broken:
            return False
        proxy.freeze()
        return self._break(proxy, self._random.uniform(0.5, 25.0), proxy.reset)


def run_id(url: str) -> str:
    """Return which start of which server answers at a URL, or why none does."""
    with redis.Redis.from_url(url, socket_timeout=1) as broker:
        try:
            info = broker.info("server")
        except redis.RedisError as error:
            return f"unknown ({type(error).__name__})"
        return f"{info['run_id'][:8]} (process {info['process_id']})"


@dataclass
class Submission:
    """How an honest check was submitted; times are in seconds since 1970."""

    form: str
    began: float
    #: The errors before the confirmation: the check may be enqueued all the same.
    errors: list[str] = field(default_factory=list)
    confirmed: float | None = None
    #: The server that answered just after the confirmation.
    server: str = ""


class Producer(threading.Thread):
    """Submits honest checks in every form that producers use, among hostile messages and pictures.

    `good` is the key of a good picture, `hostile` are those of hostile ones.
    """

    def __init__(self, client: Client, *, good: str, hostile: Sequence[str], seed: int) -> None:
        super().__init__(name="producer", daemon=True)
        #: Honest checks; hostile checks; hostile entries.
        self.honest: dict[str, Submission] = {}
        self.hostile: set[str] = set()
        self.hostile_entries: set[bytes] = set()
        self._client = client
        self._url = client.settings.redis_url.get_secret_value()
        self._broker = connect(client.settings.broker, retries=0)
        self._good = good
        self._hostile = hostile
        self._random = random.Random(seed)
        self._ended = threading.Event()
        self._number = 0

    @property
    def submitted_again(self) -> set[str]:
        """The honest checks that were submitted again after an error."""
        return {name for name, submission in self.honest.items() if submission.errors}

    def end(self) -> None:
        """Stop submitting; the broker must answer."""
        self._ended.set()
        self.join(60)
        self._broker.close()

    def run(self) -> None:
        """Submit until the end, as long as the queues are short."""
        while not self._ended.wait(self._random.uniform(0.02, 0.2)):
            with suppress(redis.RedisError):
                if waiting(self._client) < 60:
                    self._submit()

    def _submit(self) -> None:
        bucket, queue = self._client.settings.upload_bucket, self._random.choice(QUEUES)
        checks = [ImageCheck(bucket=bucket, key=self._good) for _ in range(self._random.randint(1, 5))]
        form = f"submit_many to {queue}"
        match self._random.randrange(4):
            case 0:
                checks = checks[:1]
                form = f"submit_check to {queue}"
                submit = partial(self._client.submit_check, checks[0], queue=queue)
            case 1:
                form = f"foreign messages to {queue}"
                entries = [self._odd_entry(check, queue) for check in checks]
                submit = partial(self._broker.lpush, queue, *entries)  # type: ignore[assignment]
            case _:
                submit = partial(self._client.submit_many, checks, queue=queue)  # type: ignore[assignment]
        submission = Submission(form, began=time.time())
        self.honest |= dict.fromkeys((check.check_id for check in checks), submission)
        self._until_confirmed(submit, submission)
        if self._random.random() < 0.3:
            key, bucket = self._random.choice([(each, bucket) for each in self._hostile] + [("k", "other")])
            check = ImageCheck(bucket=bucket, key=key)
            self.hostile.add(check.check_id)
            self._until_confirmed(partial(self._client.submit_many, [check], queue=queue))
        if self._random.random() < 0.5:
            self._number += 1
            entry = self._random.choice(HOSTILE_ENTRIES)(self._number, self._random)
            self.hostile_entries.add(entry)
            self._until_confirmed(partial(self._broker.lpush, queue, entry))

    def _until_confirmed(self, submit: Callable[[], object], submission: Submission | None = None) -> None:
        noted = submission or Submission("hostile", began=time.time())
        while True:
            try:
                submit()
            except (redis.RedisError, QueueUnreachableError) as error:
                noted.errors.append(f"{time.time():.3f} {type(error).__name__}: {error}")
                time.sleep(0.2)
            else:
                noted.confirmed = time.time()
                noted.server = run_id(self._url)
                return

    def _odd_entry(self, check: ImageCheck, queue: str) -> bytes:
        """Return an entry as foreign producers write it."""
        entry = json.loads(encode(check.model_dump(mode="json"), queue))
        headers, properties = entry["headers"], entry["properties"]
        match self._random.randrange(6):
            case 0:
                properties["delivery_info"] = None
            case 1:
                properties["delivery_tag"] = "the same for all"
            case 2:
                properties["priority"] = 9
            case 3:
                headers["retries"] = None
            case 4:
                headers["eta"] = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
            case _:
                headers["compression"] = "application/x-gzip"
                entry["body"] = b64encode(gzip.compress(b64decode(entry["body"]))).decode()
        return json.dumps(entry).encode()


class GroupReader(threading.Thread):
    """The one member of a consumer group; it needs `seconds_per_event` for each, until `catch_up`."""

    def __init__(self, client: Client, group: str, *, seconds_per_event: float = 0.0) -> None:
        super().__init__(name=f"group-{group}", daemon=True)
        #: By entry id.
        self.events: dict[str, Event] = {}
        self.group = group
        self._client = client
        self._seconds = seconds_per_event
        self._ended = threading.Event()

    def catch_up(self) -> None:
        """Be quick from now on."""
        self._seconds = 0.0

    def end(self) -> None:
        """Stop reading; the broker must answer."""
        self._ended.set()
        self.join(60)

    def run(self) -> None:
        """Read and acknowledge, connecting anew after errors."""
        while not self._ended.is_set():
            try:
                for received in self._client.verdicts(self.group, consumer="member", follow=False):
                    time.sleep(self._seconds)
                    self.events[received.event.entry_id] = received.event
                    received.ack()
                    if self._ended.is_set():
                        return
            except (redis.RedisError, QueueUnreachableError):
                pass
            time.sleep(0.1)

    def by_check(self) -> dict[str, list[Event]]:
        """Return the events of each check."""
        found: dict[str, list[Event]] = {}
        for event in list(self.events.values()):
            found.setdefault(event.check_id, []).append(event)
        return found
