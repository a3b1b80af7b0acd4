"""A consumer of verdicts that is killed."""

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


def test_another_consumer_claims_the_events_of_a_killed_one(
    fleet: StartFleet,
    client: Client,
    *,
    stored_picture: str,
    chaos_environment: dict[str, str],
    report: Report,
) -> None:
    """It is killed between reading and acknowledging; every event is processed once."""
    checks = submit(client, [stored_picture], count=300 * SCALE)
    assert wait_for_all(client, fleet(2, NULL_BATCH_SECONDS="0.02"), checks, seconds=60 * SCALE).once_each
    processed = Counter[str]()
    for number in range(2):
        # It acknowledged all events that it read but the last.
        processed.update(_read_by_killed(chaos_environment, f"killed-{number}", 20)[:-1])
    killed = time.monotonic()
    stream = VerdictStream.connect(client.settings)
    for event in stream.consume("moderators", "other", block_seconds=0.2, claim_after_seconds=CLAIM_SECONDS):
        if event is not None:
            processed[event.check_id] += 1
            stream.acknowledge("moderators", event)
        elif len(processed) == len(checks):
            break
        assert time.monotonic() < killed + 60 * PATIENCE * SCALE
    took = time.monotonic() - killed
    stream.close()
    report.add(
        "2 consumers killed between reading and acknowledging",
        "another one claims their events",
        checks=len(checks),
        answered=len(processed),
        doubled=processed.total() - len(processed),
        delay_seconds=took,
        delay_since=f"until all are processed (claimed after {CLAIM_SECONDS:.0f})",
    )
    assert processed == Counter(list(checks))


def _read_by_killed(environment: dict[str, str], name: str, count: int) -> list[str]:
    """Return the check ids that a consumer read before it was killed."""
    command = [sys.executable, "-m", "tests.chaos.reading_consumer", "moderators", name, str(count)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
    ) as consumer:
        assert consumer.stdout is not None
        read = [consumer.stdout.readline().strip() for _ in range(count + 1)]
        consumer.kill()
    return read
