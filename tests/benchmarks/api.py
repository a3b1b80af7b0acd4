"""What a submission costs a platform: over HTTP beside the Python client, by clients at the same time."""

import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from urllib.request import urlopen
from uuid import uuid4

from tests.benchmarks.pictures import jpeg
from tests.benchmarks.workers import BenchmarkFailedError, cpu_seconds, database_url, running
from worker.client import Client
from worker.database.database import Database
from worker.database.tokens import create_token
from worker.embedded.guarded_process import GuardedProcess
from worker.embedded.services import EmbeddedServices
from worker.embedded.startup import HOST, free_ports
from worker.settings import Settings

_READY_SECONDS, _VERDICT_SECONDS = 60.0, 600.0
_KEY = "picture.jpg"


@dataclass(frozen=True)
class Latencies:
    """One way to submit, in one round."""

    way: str
    submissions: int
    clients: int
    seconds: float
    #: Milliseconds of one submission.
    p50_ms: float
    p99_ms: float
    #: Milliseconds of processor time for one submission, of the clients' process and of the API's.
    client_cpu_ms: float
    server_cpu_ms: float


def submissions(services: EmbeddedServices, *, checks: int, clients: int, rounds: int) -> list[Latencies]:
    """Submit `checks` by so many threads, over HTTP and with the Python client in turn, and time each.

    A worker with a null detector judges them meanwhile. Raises `BenchmarkFailedError` unless every check has
    one event.
    """
    services.seaweedfs.client().put_object(Bucket=services.bucket, Key=_KEY, Body=jpeg("512"))
    found = []
    with ExitStack() as stack:
        stack.enter_context(running("path", services, count=1, database=0))
        url = database_url(services, 0)
        environment = {**services.environment(), "DNF_REDIS_URL": url}
        settings = Settings(
            **{name.removeprefix("DNF_").lower(): value for name, value in environment.items()}
        )
        client = stack.enter_context(Client(settings))
        port, pid, token = stack.enter_context(_served(services, environment))
        ways: list[tuple[str, Callable[[str], None]]] = [
            ("POST /v1/checks", _poster(port, token, services.bucket)),
            ("Client.submit", lambda check_id: _submit(client, services.bucket, check_id)),
        ]
        for number in range(-1, rounds):
            for way, submit in ways if number % 2 == 0 else reversed(ways):
                count = checks if number >= 0 else max(clients, checks // 10)
                row = _round(way, submit, client, checks=count, clients=clients, server_pid=pid)
                if number >= 0:
                    found.append(row)
    return found


def _round(
    way: str, submit: Callable[[str], None], client: Client, *, checks: int, clients: int, server_pid: int
) -> Latencies:
    check_ids = [str(uuid4()) for _ in range(checks)]
    since = client.position()

    def timed(check_id: str) -> float:
        began = time.perf_counter()
        submit(check_id)
        return time.perf_counter() - began

    spent, served, began = _cpu_seconds(), cpu_seconds(server_pid), time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        times = sorted(threads.map(timed, check_ids))
    seconds, used = time.perf_counter() - began, _cpu_seconds() - spent
    served = cpu_seconds(server_pid) - served
    client.wait_for(*check_ids, timeout_seconds=_VERDICT_SECONDS, since=since)
    events = [event.check_id for event in client.events(since=since, follow=False)]
    if sorted(events) != sorted(check_ids):
        raise BenchmarkFailedError(f"{way}: {checks} checks have {len(events)} events.")
    return Latencies(
        way,
        checks,
        clients,
        seconds,
        1000 * times[len(times) // 2],
        1000 * times[int(len(times) * 0.99)],
        1000 * used / checks,
        1000 * served / checks,
    )


def _submit(client: Client, bucket: str, check_id: str) -> None:
    client.submit(bucket, _KEY, check_id=check_id)


def _poster(port: int, token: str, bucket: str) -> Callable[[str], None]:
    own = threading.local()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def post(check_id: str) -> None:
        if not hasattr(own, "connection"):
            own.connection = HTTPConnection(HOST, port, timeout=60)
        body = json.dumps({"check_id": check_id, "bucket": bucket, "key": _KEY})
        own.connection.request("POST", "/v1/checks", body, headers)
        answer = own.connection.getresponse()
        answer.read()
        if answer.status != 202:
            raise BenchmarkFailedError(f"POST /v1/checks answered {answer.status}.")

    return post


@contextmanager
def _served(services: EmbeddedServices, environment: dict[str, str]) -> Iterator[tuple[int, int, str]]:
    """Run `dnf-worker web`, and yield its port, process id and a token."""
    port, probes = free_ports(2)
    variables = {
        **{name: value for name, value in os.environ.items() if not name.startswith("DNF_")},
        **environment,
        "DNF_WEB_HOST": HOST,
        "DNF_WEB_PORT": str(port),
        "DNF_HTTP_HOST": HOST,
        "DNF_HTTP_PORT": str(probes),
        "DNF_WEB_TRUSTED_PROXIES": HOST,
        "DNF_WEB_REQUESTS_PER_MINUTE": "1000000",
    }
    process = GuardedProcess(
        [sys.executable, "-m", "worker.cli", "web"], log=services.folder / "web.log", environment=variables
    )
    try:
        deadline = time.monotonic() + _READY_SECONDS
        while not _ready(probes):
            if not process.alive or time.monotonic() > deadline:
                raise BenchmarkFailedError(f"The API did not start.\n{process.tail()}")
            time.sleep(0.1)
        settings = Settings(
            database_url=environment["DNF_DATABASE_URL"],
            database_owner_url=environment["DNF_DATABASE_OWNER_URL"],
        )
        with Database.open(settings.database) as database, database.transaction() as tx:
            _, token = create_token(tx, "benchmark", ["checks:write"], by="benchmark")
        yield port, process.pid, token
    finally:
        process.kill()


def _ready(port: int) -> bool:
    try:
        with urlopen(f"http://{HOST}:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
