"""A consumer of verdicts that dies at its work."""

import os
import subprocess
import sys
import time
from collections import Counter

from tests.chaos.conftest import SCALE, StartFleet
from tests.chaos.outcome import submit, wait_for_all
from tests.chaos.report import Report
from tests.conftest import PATIENCE
from worker.broker.verdict_stream import VerdictStream
from worker.client import Client

CLAIM_SECONDS = 1.0


def test_events_that_a_dead_consumer_had_read_go_to_another(
    fleet: StartFleet,
    client: Client,
    *,
    stored_picture: str,
    chaos_environment: dict[str, str],
    report: Report,
) -> None:
    """Killed between reading and acknowledging, it takes none along: another claims and deals with them."""
    checks = submit(client, [stored_picture], count=300 * SCALE)
    assert wait_for_all(client, fleet(2, NULL_BATCH_SECONDS="0.02"), checks, seconds=60 * SCALE).once_each
    dealt_with = Counter[str]()
    for number in range(2):
        # It acknowledged all but the last that it said it has.
        dealt_with.update(_read_and_die(chaos_environment, f"dies-{number}", 20)[:-1])
    died = time.monotonic()
    results = VerdictStream.connect(client.settings)
    for event in results.consume("moderators", "lives", block_seconds=0.2, claim_after_seconds=CLAIM_SECONDS):
        if event is not None:
            dealt_with[event.check_id] += 1
            results.acknowledge("moderators", event)
        elif len(dealt_with) == len(checks):
            break
        assert time.monotonic() < died + 60 * PATIENCE * SCALE
    took = time.monotonic() - died
    results.close()
    report.add(
        "2 consumers killed between reading and acknowledging",
        "another gets their events",
        checks=len(checks),
        answered=len(dealt_with),
        doubled=dealt_with.total() - len(dealt_with),
        delay_seconds=took,
        delay_since=f"until all are processed (claimed after {CLAIM_SECONDS:.0f})",
    )
    assert dealt_with == Counter(list(checks))


def _read_and_die(environment: dict[str, str], name: str, count: int) -> list[str]:
    """Return the check ids that a consumer read before it was killed."""
    command = [sys.executable, "-m", "tests.chaos.reading_consumer", "moderators", name, str(count)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
    ) as consumer:
        assert consumer.stdout is not None
        read = [consumer.stdout.readline().strip() for _ in range(count + 1)]
        consumer.kill()
    return read
