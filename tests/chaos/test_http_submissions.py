"""The process of the HTTP API is killed while platforms submit to it."""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path

from tests.chaos.conftest import SCALE, StartFleet
from tests.chaos.report import Report
from tests.served_page import Caller, bearer, token
from tests.webhook_receiver import wait_until
from worker.client import Client
from worker.database.database import Database
from worker.embedded.guarded_process import GuardedProcess
from worker.embedded.startup import HOST, free_ports

CHECKS = 100 * SCALE
KILLS = SCALE


def test_checks_by_http_have_one_verdict_each_although_the_api_is_killed(  # noqa: PLR0917 - fixtures
    chaos_environment: dict[str, str],
    database_environment: dict[str, str],
    database: Database,
    client: Client,
    fleet: StartFleet,
    stored_picture: str,
    report: Report,
    tmp_path: Path,
) -> None:
    """Whoever had no answer sends the same request again: 202 is an acceptance, one check has one event."""
    (port,) = free_ports(1)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DNF_")}
    environment = {
        **inherited,
        **chaos_environment,
        **database_environment,
        "DNF_WEB_HOST": HOST,
        "DNF_WEB_PORT": str(port),
        "DNF_WEB_TRUSTED_PROXIES": HOST,
        "DNF_WEB_REQUESTS_PER_MINUTE": "1000000",
    }

    def started() -> GuardedProcess:
        return GuardedProcess(
            [sys.executable, "-m", "worker.cli", "web"], log=tmp_path / "web.log", environment=environment
        )

    fleet(1)
    caller = Caller(port, bearer(token(database, "checks:write")))
    accepted: list[str] = []
    unanswered: list[str] = []

    def submitted(number: int) -> str:
        check_id = f"by-http-{number}"
        body = {"check_id": check_id, "bucket": chaos_environment["DNF_UPLOAD_BUCKET"], "key": stored_picture}
        while True:
            try:
                reply = caller.post("/v1/checks", body)
            except (OSError, HTTPException):
                if accepted:
                    unanswered.append(check_id)
                time.sleep(0.1)
                continue
            assert reply.status == 202, reply.body
            accepted.append(check_id)
            return check_id

    api = started()
    began = time.monotonic()
    with ThreadPoolExecutor(8) as threads:
        pending = [threads.submit(submitted, number) for number in range(CHECKS)]
        for kill in range(KILLS):
            wait_until(lambda kill=kill: len(accepted) > CHECKS * kill // KILLS, 60)
            api.kill()
            api = started()
        check_ids = [each.result() for each in pending]
    seconds = time.monotonic() - began
    api.kill()
    client.wait_for(*check_ids, timeout_seconds=120, since="0-0")
    events = [event.check_id for event in client.events(follow=False)]
    report.add(
        f"{KILLS} SIGKILLs of the HTTP API under load",
        f"202 is an acceptance; exactly one verdict each ({len(unanswered)} requests sent again)",
        checks=len(check_ids),
        answered=len(set(events)),
        doubled=len(events) - len(set(events)),
        delay_seconds=seconds,
        delay_since="the first submission",
    )
    assert sorted(events) == sorted(check_ids)
    assert unanswered
