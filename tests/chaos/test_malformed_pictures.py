"""Thousands of damaged, hostile and unusual pictures."""

import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import get_args

import pytest

from detector.benchmark.speed import peak_memory_bytes, reset_peak_memory
from detector.images.decode import ImageLimits, ImageReason, ImageRejectedError, decode
from tests.chaos.conftest import SCALE, StartFleet
from tests.chaos.malformed import KINDS, malformed_pictures
from tests.chaos.outcome import submit, wait_for_all
from tests.chaos.report import Report
from tests.conftest import PATIENCE, StoreObject
from worker.client import Client

LIMITS = ImageLimits(max_pixels=4_000_000)

# Of a decoded picture: as stored, with transparency, flattened, and as an array.
BYTES_PER_PIXEL = 16
SECONDS_PER_PICTURE = 5.0
IN_FLIGHT = 8


@pytest.mark.filterwarnings("ignore")
def test_5000_malformed_pictures_are_decoded_or_rejected_with_a_reason(report: Report) -> None:
    """Each gives pixels or a listed reason; none takes long or much memory."""
    found, slowest = Counter[str](), 0.0
    count = 5000 * min(SCALE, 4)
    # Loads every decoder before memory is measured.
    for _, data in malformed_pictures(500, seed=1):
        with suppress(ImageRejectedError):
            decode(data, LIMITS)
    reset_peak_memory("cpu")
    before = peak_memory_bytes()
    for _, data in malformed_pictures(count):
        began = time.perf_counter()
        try:
            pixels = decode(data, LIMITS).pixels
            assert pixels.ndim == 3
            assert pixels.shape[2] == 3
            found["read"] += 1
        except ImageRejectedError as rejected:
            found[rejected.reason] += 1
        slowest = max(slowest, time.perf_counter() - began)
    memory = peak_memory_bytes() - before
    report.add(
        f"malformed pictures, decoded ({len(KINDS)} kinds)",
        f"pixels or a listed reason; no crash; memory bounded (+{memory >> 20} MiB)",
        checks=count,
        answered=found.total(),
        delay_seconds=slowest,
        delay_since="for the slowest",
    )
    assert found.keys() <= {"read", *get_args(ImageReason)}
    assert len(found) > 5
    assert slowest < SECONDS_PER_PICTURE * PATIENCE
    assert memory < LIMITS.max_pixels * BYTES_PER_PIXEL + (100 << 20)


def test_malformed_pictures_on_the_queue_are_answered_and_end_no_worker(
    fleet: StartFleet, client: Client, *, store_object: StoreObject, report: Report
) -> None:
    """Each has one verdict or one rejection with a listed reason, before the deadline, in bounded memory."""
    count = 300 * SCALE
    for number, (_, data) in enumerate(malformed_pictures(count, seed=12)):
        store_object(f"malformed/{number}.jpg", data)
    workers = fleet(2, DNF_MAX_PIXELS=str(LIMITS.max_pixels), NULL_BATCH_SECONDS="0.01")
    pids = workers.pids()
    idle = [_peak_memory_bytes(pid) for pid in pids]
    checks = submit(client, [f"malformed/{number}.jpg" for number in range(count)], count=count)
    outcome = wait_for_all(client, workers, checks, seconds=60 * SCALE, supervise=False)
    memory = max(_peak_memory_bytes(pid) - before for pid, before in zip(pids, idle, strict=True))
    ended = [*workers.events("image_checked"), *workers.events("image_rejected")]
    slowest = max(line["durations_ms"]["total"] for line in ended) / 1000
    report.add(
        f"malformed pictures on the queue ({len(KINDS)} kinds)",
        f"a verdict or a listed reason ({outcome.rejections.total()} rejections); no crash; memory bounded"
        f" (+{memory >> 20} MiB)",
        checks=len(checks),
        answered=len(outcome.events),
        doubled=outcome.doubled,
        delay_seconds=slowest,
        delay_since="for the slowest",
    )
    assert outcome.once_each
    assert outcome.rejections.keys() <= set(get_args(ImageReason))
    assert 0.3 * count < outcome.rejections.total() < count
    assert workers.pids() == pids
    assert slowest < float(workers.environment["DNF_CHECK_DEADLINE_SECONDS"]) * PATIENCE
    assert memory < IN_FLIGHT * LIMITS.max_pixels * BYTES_PER_PIXEL + (100 << 20)


def _peak_memory_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
