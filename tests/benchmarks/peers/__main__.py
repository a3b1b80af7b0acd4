"""Peers beside the worker: `python -m tests.benchmarks.peers`.

`PEERS_PYTHON` names the interpreter in whose environment Ray Serve and LitServe are installed.

Each serves the same detector on the same machine: throughput at saturation, latency at half of it, memory,
and the requests without an answer after the process that holds the model is killed amid them.
"""

import contextlib
import http.client
import json
import os
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

import click
import redis
from rich.table import Table

from detector.terminal import Console
from tests.benchmarks.pictures import jpeg
from tests.benchmarks.workers import QUEUE, STREAM, BenchmarkFailedError, cpu_seconds
from worker.contract.envelope import encode
from worker.contract.messages import CHECK_IMAGE, ImageCheck
from worker.embedded.guarded_process import GuardedProcess
from worker.embedded.services import EmbeddedServices

PEERS_PYTHON = os.environ.get("PEERS_PYTHON", sys.executable)
VISIBILITY_SECONDS = 20
READY_SECONDS = 180.0
ROUND_SECONDS = 900.0
# kombu looks for messages without an acknowledgement every hundred seconds.
KILLED_SECONDS = 150.0
CLIENTS = 32
_KEY = "picture.jpg"
#: The queue of Ray Serve.
PEER_QUEUE = "peer-checks"

#: Sends requests, the n-th at the n-th second given; returns the seconds that each took, None for no answer.
Send = Callable[[list[float], float], list[float | None]]


@dataclass(frozen=True)
class Peer:
    """One side of the comparison, running."""

    name: str
    process: GuardedProcess
    send: Send


@dataclass(frozen=True)
class Result:
    """What was measured of a peer."""

    name: str
    requests_per_second: float
    cpu_ms: float
    p50_ms: float
    p99_ms: float
    memory_mib: float
    lost: int
    recovery_seconds: float


@click.command()
@click.option("--peer", "names", type=click.Choice(["dnf-worker", "ray", "litserve"]), multiple=True)
@click.option("--requests", "count", default=300, show_default=True)
@click.option("--bundle", default="", help="Of the detector; the null detector without it.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
def main(*, names: tuple[str, ...], count: int, bundle: str, json_file: Path | None) -> None:
    """Measure each peer with COUNT requests for a picture of 512 pixels."""
    kinds = {"dnf-worker": _ours, "ray": _ray, "litserve": _litserve}
    table = Table("Peer", "Requests/s", "CPU ms", "p50 ms", "p99 ms", "MiB", "Lost", "Last answer s")
    results = []
    with EmbeddedServices() as services:
        services.seaweedfs.client().put_object(Bucket=services.bucket, Key=_KEY, Body=jpeg("512"))
        for name in names or kinds:
            with kinds[name](services, bundle) as peer:
                result = _measured(peer, count)
            results.append(asdict(result))
            table.add_row(name, *(f"{value:.1f}" for value in list(asdict(result).values())[1:]))
            sys.stderr.write(f"{result}\n")
    Console().print(table)
    if json_file:
        json_file.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def _measured(peer: Peer, count: int) -> Result:
    peer.send([0.0] * min(CLIENTS, count), ROUND_SECONDS)  # the first requests load what the later ones use
    spent, began = _cpu_seconds(peer), time.perf_counter()
    answered = _answered(peer.send([0.0] * count, ROUND_SECONDS))
    seconds, cpu = time.perf_counter() - began, _cpu_seconds(peer) - spent
    rate = len(answered) / seconds
    paced = _answered(peer.send([number / (rate / 2) for number in range(count)], ROUND_SECONDS))
    memory = sum(_proportional_bytes(pid) for pid in _tree(peer.process.pid))
    killer = threading.Timer(seconds / 3, _kill_model, [peer])
    killer.start()
    began = time.perf_counter()
    outcomes = peer.send([0.0] * count, 3 * seconds + KILLED_SECONDS)
    recovery = time.perf_counter() - began
    killer.join()
    return Result(
        name=peer.name,
        requests_per_second=rate,
        cpu_ms=cpu * 1000 / count,
        p50_ms=statistics.median(paced) * 1000,
        p99_ms=sorted(paced)[int(len(paced) * 0.99)] * 1000,
        memory_mib=memory / (1 << 20),
        lost=outcomes.count(None),
        recovery_seconds=recovery,
    )


def _answered(outcomes: list[float | None]) -> list[float]:
    return [outcome for outcome in outcomes if outcome is not None]


@contextmanager
def _process(
    services: EmbeddedServices, command: list[str], ready: Callable[[str], bool], **variables: str
) -> Iterator[GuardedProcess]:
    environment = {**os.environ, **services.environment(), "DNF_LOG_FORMAT": "json", **variables}
    environment["PYTHONPATH"] = str(Path.cwd())
    with tempfile.TemporaryDirectory(prefix="dnf-peer-", ignore_cleanup_errors=True) as folder:
        process = GuardedProcess(command, log=Path(folder) / "log", environment=environment)
        try:
            deadline = time.monotonic() + READY_SECONDS
            while not ready(process.log.read_text(encoding="utf-8", errors="replace")):
                if not process.alive or time.monotonic() > deadline:
                    raise BenchmarkFailedError(f"It did not start.\n{process.tail(40)}")
                time.sleep(0.2)
            yield process
        finally:
            pids = _tree(process.pid)
            process.stop(grace_seconds=15.0)
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@contextmanager
def _ours(services: EmbeddedServices, bundle: str) -> Iterator[Peer]:
    """Run `dnf-worker run`, supervised, whose events are the answers."""
    module = ["worker.cli"] if bundle else ["tests.workers.null_worker"]
    variables = {
        "DNF_VISIBILITY_TIMEOUT_SECONDS": str(VISIBILITY_SECONDS),
        "DNF_CHECK_DEADLINE_SECONDS": "15",
        "NULL_SUPERVISED": "1",
        "NULL_BATCH_SECONDS": "0",
        "NULL_VIEWS": "9",
        **({"DNF_BUNDLE": bundle} if bundle else {}),
    }
    command = [sys.executable, "-m", *module, "run", "--processes", "1"]
    with (
        redis.Redis.from_url(services.redis_url) as server,
        _process(services, command, lambda log: "worker_ready" in log, **variables) as process,
    ):

        def send(moments: list[float], timeout: float) -> list[float | None]:
            ids = [str(uuid4()) for _ in moments]
            started = time.time()
            answers: dict[str, float] = {}

            def submit(number: int) -> None:
                check = ImageCheck(bucket=services.bucket, key=_KEY, check_id=ids[number])
                server.lpush(QUEUE, encode(check.model_dump(mode="json"), QUEUE))

            def collect() -> None:
                for entry_id, fields in server.xrange(STREAM):
                    check_id = json.loads(fields[b"event"])["data"]["check_id"]
                    answers.setdefault(check_id, int(entry_id.partition(b"-")[0]) / 1000)

            server.delete(STREAM)
            _paced(moments, submit)
            _wait(lambda: server.xlen(STREAM) >= len(ids), timeout)
            collect()
            return _seconds(ids, answers, moments, started)

        yield Peer("dnf-worker", process, send)


@contextmanager
def _ray(services: EmbeddedServices, bundle: str) -> Iterator[Peer]:
    """Run a Ray Serve application, whose results in Celery's backend are the answers."""
    from celery import Celery

    url = f"{services.redis_url.removesuffix('/0')}/3"
    variables = {
        "DNF_REDIS_URL": url,
        "PEER_VISIBILITY_SECONDS": str(VISIBILITY_SECONDS),
        **({"PEER_BUNDLE": bundle} if bundle else {}),
    }
    command = [PEERS_PYTHON, "-m", "tests.benchmarks.peers.ray_serve"]
    app = Celery(broker=url, backend=url)
    with (
        redis.Redis.from_url(url) as server,
        _process(services, command, lambda log: "worker_ready" in log, **variables) as process,
    ):

        def send(moments: list[float], timeout: float) -> list[float | None]:
            ids = [str(uuid4()) for _ in moments]
            started = time.time()

            def submit(number: int) -> None:
                message = {"bucket": services.bucket, "key": _KEY}
                app.send_task(CHECK_IMAGE, [message], task_id=ids[number], queue=PEER_QUEUE)

            keys = [f"celery-task-meta-{task_id}" for task_id in ids]
            _paced(moments, submit)
            _wait(lambda: server.exists(*keys) == len(ids), timeout)
            answers = {}
            for task_id, value in zip(ids, server.mget(keys), strict=True):
                document = json.loads(value) if value else {}
                if document.get("status") == "SUCCESS":
                    answers[task_id] = _timestamp(document["date_done"])
            return _seconds(ids, answers, moments, started)

        yield Peer("ray", process, send)


@contextmanager
def _litserve(services: EmbeddedServices, bundle: str) -> Iterator[Peer]:
    """Run a LitServe server, which answers over HTTP."""
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [PEERS_PYTHON, "-m", "tests.benchmarks.peers.lit_serve", str(port)]
    variables = {"PEER_BUNDLE": bundle} if bundle else {}

    def healthy(_log: str) -> bool:
        return _ask(port, "GET", "/health", "") == 200

    with _process(services, command, healthy, **variables) as process:

        def send(moments: list[float], timeout: float) -> list[float | None]:
            body = json.dumps({"bucket": services.bucket, "key": _KEY})
            began = time.perf_counter()

            def one(moment: float) -> float | None:
                time.sleep(max(0.0, began + moment - time.perf_counter()))
                asked = max(began + moment, time.perf_counter() if not moments[-1] else 0.0)
                if _ask(port, "POST", "/predict", body, timeout) != 200:
                    return None
                return time.perf_counter() - asked

            with ThreadPoolExecutor(CLIENTS) as clients:
                return list(clients.map(one, moments))

        yield Peer("litserve", process, send)


def _ask(port: int, method: str, path: str, body: str, timeout: float = 60.0) -> int | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        reply.read()
    except OSError:
        return None
    finally:
        connection.close()
    return reply.status


def _paced(moments: list[float], submit: Callable[[int], None]) -> None:
    began = time.perf_counter()
    for number, moment in enumerate(moments):
        time.sleep(max(0.0, began + moment - time.perf_counter()))
        submit(number)


def _wait(done: Callable[[], bool], seconds: float) -> None:
    ends = time.monotonic() + seconds
    while not done() and time.monotonic() < ends:
        time.sleep(0.05)


def _seconds(
    ids: list[str], answers: dict[str, float], moments: list[float], started: float
) -> list[float | None]:
    return [
        answers[each] - started - moment if each in answers else None
        for each, moment in zip(ids, moments, strict=True)
    ]


def _timestamp(text: str) -> float:
    from datetime import UTC, datetime

    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _tree(pid: int) -> list[int]:
    """Return a process and all of its descendants."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append(int(folder.name))
    found, queue = [], [pid]
    while queue:
        found.append(each := queue.pop())
        queue += parents.get(each, [])
    return found


def _cpu_seconds(peer: Peer) -> float:
    total = 0.0
    for pid in _tree(peer.process.pid):
        with suppress(OSError):
            total += cpu_seconds(pid)
    return total


def _proportional_bytes(pid: int) -> int:
    """Return a process's memory, with its share of what it shares (PSS)."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    return 0


def _kill_model(peer: Peer) -> None:
    """Kill the descendant of a peer that runs the model: Ray's replica, or the one with the most memory."""
    descendants = [pid for pid in _tree(peer.process.pid) if pid != peer.process.pid]
    replicas = [pid for pid in descendants if b"ServeReplica" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(max(replicas or descendants, key=_proportional_bytes), signal.SIGKILL)


if __name__ == "__main__":
    main()
