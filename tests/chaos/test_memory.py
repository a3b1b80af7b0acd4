"""Small files of many pixels among honest uploads, at the chart's settings."""

import io
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.chaos.conftest import SCALE, StartFleet
from tests.chaos.outcome import submit, wait_for_all
from tests.chaos.report import Report
from tests.conftest import MakePicture
from worker.client import Client
from worker.embedded.services import EmbeddedServices
from worker.settings import Settings

# Of the 4 GiB that the chart gives: the rest is for the model, its batches and the bytes of uploads.
LIMIT_BYTES = 2 << 30


def _hostile() -> list[bytes]:
    """Return small files of 49 megapixels: the kinds that need the most memory a pixel."""
    flat = Image.new("RGB", (7000, 7000), (90, 120, 40))
    files = []
    for image, kind, options in (
        (flat.convert("1"), "PNG", {}),
        (flat.convert("RGBA"), "PNG", {}),
        (flat.convert("CMYK"), "JPEG", {"progressive": True}),
        (flat, "WEBP", {"lossless": True, "quality": 0, "method": 0}),
        (Image.new("1", (33, 1_480_000)), "PNG", {}),
    ):
        image.save(file := io.BytesIO(), kind, **options)
        files.append(file.getvalue())
    return files


@pytest.mark.timeout(300)
def test_hostile_uploads_among_honest_ones_kill_no_worker(
    fleet: StartFleet,
    client: Client,
    services: EmbeddedServices,
    make_picture: MakePicture,
    report: Report,
) -> None:
    """All checks have their verdicts, from the same process, within the chart's limit of memory."""
    store = services.seaweedfs.client()
    hostile, count = _hostile(), 32 * min(SCALE, 8)
    for number, data in enumerate(hostile):
        store.put_object(Bucket=services.bucket, Key=f"memory/hostile-{number}", Body=data)
    for number in range(5):
        store.put_object(Bucket=services.bucket, Key=f"memory/honest-{number}", Body=make_picture(number))
    # Every fourth is hostile.
    keys = [
        f"memory/honest-{number % 5}" if number % 4 else f"memory/hostile-{number // 4 % len(hostile)}"
        for number in range(count)
    ]
    defaults = Settings()
    workers = fleet(
        1,
        DNF_BATCH_SIZE=str(defaults.batch_size),
        DNF_THREADS=str(defaults.threads),
        DNF_CHECK_DEADLINE_SECONDS=str(defaults.check_deadline_seconds),
        DNF_VISIBILITY_TIMEOUT_SECONDS=str(defaults.visibility_timeout_seconds),
    )
    pids = workers.pids()
    at_rest = _peak_memory_bytes(pids[0])
    began = time.monotonic()
    checks = submit(client, keys, count=len(keys))
    outcome = wait_for_all(client, workers, checks, seconds=240, supervise=False)
    peak = _peak_memory_bytes(pids[0])
    report.add(
        f"small files of 49 megapixels among honest ones, in one process (peak {peak >> 20} MiB)",
        "a verdict each; no process ends; memory below the chart's limit",
        checks=len(checks),
        answered=len(outcome.events),
        doubled=outcome.doubled,
        delay_seconds=time.monotonic() - began,
        delay_since="until all are answered",
    )
    assert outcome.once_each
    assert not outcome.rejections
    assert workers.pids() == pids
    assert peak - at_rest < LIMIT_BYTES


def _peak_memory_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
