"""Page, relay, broker and database are killed while people decide."""

import hashlib
import http.client
import json
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.chaos.conftest import SCALE
from tests.chaos.report import Report
from tests.conftest import MakePicture, StoreObject, settings_of
from tests.relay_process import RelayProcess
from tests.verdicts import verdict_event
from worker.broker.verdict_stream import VerdictStream
from worker.contract.messages import read_decision
from worker.database.database import Database
from worker.database.errors import DatabaseUnavailableError
from worker.embedded.guarded_process import GuardedProcess
from worker.embedded.postgres import PostgreSQL
from worker.embedded.services import EmbeddedServices
from worker.embedded.startup import HOST, free_ports
from worker.embedded.valkey import Valkey
from worker.reviews.audit import verify
from worker.settings import Settings

DECISIONS = 500
#: What is killed, in turn.
KILLED = ("web", "relay", "valkey", "postgres") * (1 if SCALE == 1 else 5)


@pytest.fixture
def own_postgres() -> Iterator[PostgreSQL]:
    """Provide a server of the test's own, which it may kill."""
    with tempfile.TemporaryDirectory(prefix="dnf-postgres-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)
        server = PostgreSQL(Path(folder) / "postgres")
        server.start()
        yield server
        server.kill()


class House:
    """Everything between a verdict and its decision, as processes that can be killed."""

    def __init__(
        self, environment: Mapping[str, str], folder: Path, valkey: Valkey, postgres: PostgreSQL
    ) -> None:
        self._folder = folder
        self._valkey = valkey
        self._postgres = postgres
        (self.port,) = free_ports(1)
        self.environment = {
            **environment,
            **postgres.environment(),
            "DNF_REVIEW_UNDO_SECONDS": "0",
            "DNF_REVIEW_DOUBLE_SHARE": "0",
            # A claim whose answer was lost comes back after it.
            "DNF_REVIEW_LEASE_SECONDS": "3",
            "DNF_WEB_HOST": HOST,
            "DNF_WEB_PORT": str(self.port),
            "DNF_WEB_TRUSTED_PROXIES": f"{HOST}/32",
            "DNF_WEB_CLAIMS_PER_MINUTE": "100000",
        }
        self.relay = RelayProcess(self.environment, folder / "relay.log")
        self.deciders: list[GuardedProcess] = []
        self.web: GuardedProcess | None = None

    def start(self, deciders: int) -> None:
        """Start relay, page and deciders."""
        self.relay.start()
        self.relay.wait_for_event("relay_ready")
        self._start_web()
        for number in range(deciders):
            self.deciders.append(
                self._process(f"decider-{number}", "tests.workers.decider", f"person-{number}")
            )

    def kill_and_restart(self, name: str) -> None:
        """Kill one part (SIGKILL) and start it again a moment later."""
        part: Any = {"relay": self.relay, "valkey": self._valkey, "postgres": self._postgres, "web": self.web}
        part[name].kill()
        time.sleep(0.2)
        if name == "web":
            self._start_web()
        else:
            part[name].start()

    @contextmanager
    def deciders_stopped(self) -> Iterator[None]:
        """Leave the queue to the page during the block."""
        for decider in self.deciders:
            decider.signal(signal.SIGSTOP)
        yield
        for decider in self.deciders:
            decider.signal(signal.SIGCONT)

    def supervise(self) -> None:
        """Start again what ended because of another part, as an orchestrator does."""
        if not self.relay.alive:
            self.relay.start()
        if self.web is None or not self.web.alive:
            self._start_web()

    def confirmed(self) -> list[str]:
        """Return the ids of the decisions that the deciders' processes were told of."""
        logs = "".join(decider.log.read_text() for decider in self.deciders)
        return re.findall(r"confirmed ([0-9a-f-]{36})\n", logs)

    def stop(self) -> None:
        """Kill everything but the servers."""
        self.relay.kill()
        for process in (*self.deciders, self.web):
            if process is not None:
                process.kill()

    def _start_web(self) -> None:
        self.web = self._process("web", "worker.cli", "web")

    def _process(self, name: str, module: str, *arguments: str) -> GuardedProcess:
        inherited = {each: value for each, value in os.environ.items() if not each.startswith("DNF_")}
        return GuardedProcess(
            [sys.executable, "-m", module, *arguments],
            log=self._folder / f"{name}.log",
            environment={**inherited, **self.environment},
        )


class Browser(threading.Thread):
    """A moderator at the page, over HTTP: repeats each request until it is answered."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._port = port
        self._ending = threading.Event()
        self.confirmed: list[str] = []
        self.refused: Counter[str] = Counter()

    def run(self) -> None:
        """Claim, look and decide, until the end."""
        while not self._ending.is_set():
            claimed = json.loads(self._asked("POST", "/reviews/claim", {}))
            if claimed.get("status") != "claimed":
                self._ending.wait(0.05)
                continue
            page = self._asked("GET", "/")
            found = re.search(r'data-review="([0-9a-f-]+)".* data-lease="([0-9a-f-]+)"', page)
            if found is None:
                continue
            reply = json.loads(
                self._asked(
                    "POST", f"/reviews/{found[1]}/decide", {"lease": found[2], "outcome": "generated"}
                )
            )
            if "decision" in reply:
                self.confirmed.append(reply["decision"])
            else:
                self.refused[str(reply.get("reason") or reply.get("type"))] += 1

    def end(self) -> None:
        """Stop after the present request."""
        self._ending.set()
        self.join(30)

    def _asked(self, method: str, path: str, body: dict[str, str] | None = None) -> str:
        """Return the answer's body; a request without one, or with a status of 500 and above, is repeated."""
        headers = {
            "X-Forwarded-User": "browser",
            "X-Forwarded-Groups": "moderator",
            "Sec-Fetch-Site": "same-origin",
            "Content-Type": "application/json",
        }
        while not self._ending.is_set():
            connection = http.client.HTTPConnection(HOST, self._port, timeout=20)
            try:
                connection.request(method, path, None if body is None else json.dumps(body), headers)
                answer = connection.getresponse()
                text = answer.read().decode()
                if answer.status < 500:
                    return text
            except (OSError, http.client.HTTPException):
                pass
            finally:
                connection.close()
            time.sleep(0.05)
        return "{}"


def test_every_confirmed_decision_is_on_the_stream_once_whatever_is_killed(
    chaos_environment: dict[str, str],
    valkey: Valkey,
    own_postgres: PostgreSQL,
    *,
    services: EmbeddedServices,
    make_picture: MakePicture,
    store_object: StoreObject,
    report: Report,
    tmp_path: Path,
    wait_until: Callable[..., None],
) -> None:
    """Page, relay, Valkey and PostgreSQL are killed in turn during 500 decisions; the audit verifies.

    Three processes decide through the domain and one person through the page.
    """
    house = House(chaos_environment, tmp_path, valkey, own_postgres)
    browser = Browser(house.port)
    settings = settings_of(house.environment)
    picture = make_picture(5)
    store_object("judged.jpg", picture)
    try:
        browser.start()
        house.start(3)
        _publish(settings, services.bucket, picture)
        database = Database.open(settings.database)
        for number, name in enumerate(KILLED):
            wanted = DECISIONS * (number + 1) // (len(KILLED) + 1)
            wait_until(
                lambda n=wanted: len(house.confirmed()) + len(browser.confirmed) >= n, f"{wanted} decisions"
            )
            at_the_page = len(browser.confirmed)
            house.kill_and_restart(name)
            with house.deciders_stopped():
                wait_until(lambda n=at_the_page: len(browser.confirmed) > n, f"a decision after {name}")
        recovered = time.time()
        wait_until(lambda: _settled(house, database), "every decision is taken and confirmed", seconds=90)
        delay = time.time() - recovered
    finally:
        browser.end()
        house.stop()
    with redis.Redis.from_url(valkey.url) as broker:
        published = Counter(read_decision(fields[b"event"]).id for _, fields in broker.xrange("decisions"))
    confirmed = {*house.confirmed(), *browser.confirmed}
    audit = verify(database)
    database.close()
    report.add(
        f"{len(KILLED)} SIGKILLs of page, relay, Valkey and PostgreSQL in turn, during {DECISIONS} decisions",
        "every confirmed decision on the stream once; the chain of the audit verifies",
        checks=DECISIONS,
        answered=len(published),
        doubled=published.total() - len(published),
        delay_seconds=delay,
        delay_since="from the last restart until all were published",
    )
    assert confirmed <= published.keys()
    assert len(published) == DECISIONS
    assert set(published.values()) == {1}
    assert audit.fault is None
    assert audit.records >= 2 * DECISIONS


def _publish(settings: Settings, bucket: str, picture: bytes) -> None:
    """Publish uncertain verdicts on one stored picture."""
    digest = hashlib.sha256(picture).hexdigest()
    with closing(VerdictStream.connect(settings)) as stream:
        for number in range(DECISIONS):
            event = verdict_event(f"check-{number}", bucket=bucket, key="judged.jpg", sha256=digest)
            stream.publish(event, message_id="m")


def _settled(house: House, database: Database) -> bool:
    house.supervise()
    try:
        with database.transaction() as tx:
            (row,) = tx.execute(
                "SELECT (SELECT count(*) FROM reviews WHERE state = 'decided') AS decided,"
                " (SELECT count(*) FROM outbox WHERE confirmed_at IS NULL) AS unconfirmed"
            )
    except DatabaseUnavailableError:
        return False
    return row["decided"] == DECISIONS and row["unconfirmed"] == 0
