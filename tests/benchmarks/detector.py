"""What the queue costs beside the networks: the whole path compared with the bare detector."""

import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import redis

from tests.benchmarks.workers import QUEUE, BenchmarkFailedError, Workers, running
from worker.contract.envelope import encode
from worker.contract.messages import ImageCheck
from worker.embedded.services import EmbeddedServices
from worker.settings import Settings

if TYPE_CHECKING:
    from detector.detector import Detector

ROUND_SECONDS = 600.0


@dataclass(frozen=True)
class Rounds:
    """Items per second of the whole path and of the reference, by round."""

    name: str
    ours: tuple[float, ...]
    reference: tuple[float, ...]
    processes: int = 1
    #: Share of the time in which a GPU ran something during ours, 0..1, by round; empty without nvidia-smi.
    gpu_busy: tuple[float, ...] = ()

    @property
    def ratios(self) -> list[float]:
        """The ratio of ours to the reference, by round."""
        return [ours / reference for ours, reference in zip(self.ours, self.reference, strict=True)]

    def spread(self) -> tuple[float, float, float]:
        """Return the minimum, the median and the maximum of the ratios."""
        return min(self.ratios), statistics.median(self.ratios), max(self.ratios)


def against_bare_detector(
    services: EmbeddedServices,
    detector: "Detector",
    *,
    pictures: int,
    batch_size: int,
    rounds: int,
    processes: int = 1,
) -> Rounds:
    """Compare checks in `processes` workers with `detector` alone on the same files, batch by batch.

    The workers load its bundle, and compile it if the settings say so. Raises `BenchmarkFailedError`.
    """
    from detector.benchmark.speed import sample_files

    files = sample_files(pictures)
    bundle = str(detector.bundle.folder)
    busy: list[float] = []
    with ExitStack() as stack:
        keys = _stored(services, files)
        variables = {"DNF_BUNDLE": bundle, "DNF_BATCH_SIZE": str(batch_size)}
        variables |= {"DNF_DEVICE": detector.device, "DNF_COMPILE": str(Settings().compile)}
        workers = stack.enter_context(running("bundle", services, count=processes, **variables))
        server = stack.enter_context(closing(redis.Redis.from_url(services.redis_url)))

        def ours() -> float:
            with watched_gpu(busy):
                return _speed(server, workers, [_check(services, key) for key in keys])

        def reference() -> float:
            return _detector_speed(detector, files, batch_size)

        found = _interleaved("whole path / bare detector", ours, reference, rounds)
        # Without the warm-up round.
        return replace(found, processes=processes, gpu_busy=tuple(busy[1:]))


@contextmanager
def watched_gpu(busy: list[float]) -> Iterator[None]:
    """Append the share of the block's time in which the first GPU ran something, if there is nvidia-smi."""
    program = shutil.which("nvidia-smi")
    if program is None:
        yield
        return
    command = [
        program,
        "--id=0",
        "--query-gpu=utilization.gpu",
        "--format=csv,noheader,nounits",
        "-lms",
        "100",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watch:
        try:
            yield
        finally:
            watch.terminate()
            samples = [float(line) / 100 for line in watch.communicate()[0].split() if line.isdigit()]
    if samples:
        busy.append(statistics.fmean(samples))


def _interleaved(name: str, ours: Callable[[], float], reference: Callable[[], float], rounds: int) -> Rounds:
    """Alternate both after a warm-up round, so that other load on the machine affects both alike."""
    ours(), reference()
    found: dict[Callable[[], float], list[float]] = {ours: [], reference: []}
    for number in range(rounds):
        for measured in (ours, reference) if number % 2 == 0 else (reference, ours):
            found[measured].append(measured())
    return Rounds(name, tuple(found[ours]), tuple(found[reference]))


def _speed(server: redis.Redis, workers: Workers, entries: list[bytes]) -> float:
    """Return how many messages per second are taken, processed and acknowledged."""
    began = time.perf_counter()
    server.lpush(QUEUE, *entries)
    while server.llen(QUEUE) or server.hlen("unacked"):
        workers.require_alive()
        if time.perf_counter() - began > ROUND_SECONDS:
            raise BenchmarkFailedError(f"The worker did not finish.\n{workers.processes[0].tail()}")
        time.sleep(0.01)
    return len(entries) / (time.perf_counter() - began)


def _detector_speed(detector: "Detector", files: list[bytes], batch_size: int) -> float:
    from detector.images.decode import decode

    began = time.perf_counter()
    for start in range(0, len(files), batch_size):
        batch = files[start : start + batch_size]
        detector.examine([detector.prepare(decode(data)) for data in batch])
    return len(files) / (time.perf_counter() - began)


def _check(services: EmbeddedServices, key: str) -> bytes:
    check = ImageCheck(bucket=services.bucket, key=key)
    return encode(check.model_dump(mode="json"), QUEUE)


def _stored(services: EmbeddedServices, files: list[bytes]) -> list[str]:
    store, keys = services.seaweedfs.client(), [f"{number}.jpg" for number in range(len(files))]
    for key, data in zip(keys, files, strict=True):
        store.put_object(Bucket=services.bucket, Key=key, Body=data)
    return keys
