"""What the queue costs: the whole path compared with bare Celery and with the bare detector.

`python -m tests.benchmarks.queue null|bare|bundle` runs a worker: ours without networks, Celery's with
kombu's own transport and an empty task, or ours with the bundle of the settings.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis

from worker.contract.envelope import encode
from worker.contract.messages import CHECK_IMAGE, ImageCheck
from worker.embedded.guarded_process import GuardedProcess
from worker.embedded.services import EmbeddedServices

if TYPE_CHECKING:
    from detector.detector import Detector

QUEUE = "image-checks"
READY_SECONDS = 300.0
ROUND_SECONDS = 600.0

# The bare worker uses another database of the same server.
_BARE_DATABASE = 1
_BARE_THREADS = 32


class BenchmarkFailedError(RuntimeError):
    """A worker did not start or did not finish; the message has the end of its log."""


@dataclass(frozen=True)
class Rounds:
    """Items per second of the whole path and of the reference, by round."""

    name: str
    ours: tuple[float, ...]
    reference: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """The ratio of ours to the reference, by round."""
        return [ours / reference for ours, reference in zip(self.ours, self.reference, strict=True)]

    def spread(self) -> tuple[float, float, float]:
        """Return the minimum, the median and the maximum of the ratios."""
        return min(self.ratios), statistics.median(self.ratios), max(self.ratios)


def against_bare_celery(services: EmbeddedServices, *, checks: int, rounds: int) -> Rounds:
    """Compare checks with a null detector with Celery tasks that do nothing, on one Valkey.

    Both workers run throughout, with the same number of threads; all messages are enqueued at once. Raises
    `BenchmarkFailedError`.
    """
    from detector.benchmark.speed import sample_files

    with ExitStack() as stack:
        key = _stored(services, sample_files(1))[0]
        whole = stack.enter_context(_worker("null", services))
        bare_url = services.redis_url.removesuffix("/0") + f"/{_BARE_DATABASE}"
        bare = stack.enter_context(_worker("bare", services, DNF_REDIS_URL=bare_url))
        bare_server = stack.enter_context(closing(redis.Redis.from_url(bare_url)))
        server = stack.enter_context(closing(redis.Redis.from_url(services.redis_url)))

        def ours() -> float:
            return _speed(server, whole, [_check(services, key) for _ in range(checks)])

        def reference() -> float:
            return _speed(bare_server, bare, [encode({}, QUEUE) for _ in range(checks)])

        return _interleaved("whole path, null detector / bare Celery", ours, reference, rounds)


def against_bare_detector(
    services: EmbeddedServices, bundle: str, *, pictures: int, batch_size: int, rounds: int
) -> Rounds:
    """Compare checks with a bundle with its detector alone, on the same files, batch by batch.

    Raises `BenchmarkFailedError` and `BundleError`.
    """
    from detector.benchmark.speed import sample_files
    from detector.detector import Detector

    files = sample_files(pictures)
    detector = Detector.load(bundle)
    detector.warm_up(batch_size)
    with ExitStack() as stack:
        keys = _stored(services, files)
        variables = {"DNF_BUNDLE": bundle, "DNF_BATCH_SIZE": str(batch_size)}
        worker = stack.enter_context(_worker("bundle", services, **variables))
        server = stack.enter_context(closing(redis.Redis.from_url(services.redis_url)))

        def ours() -> float:
            return _speed(server, worker, [_check(services, key) for key in keys])

        def reference() -> float:
            return _detector_speed(detector, files, batch_size)

        return _interleaved("whole path / bare detector", ours, reference, rounds)


def _interleaved(name: str, ours: Callable[[], float], reference: Callable[[], float], rounds: int) -> Rounds:
    """Alternate both after a warm-up round, so that other load on the machine affects both alike."""
    ours(), reference()
    found: dict[Callable[[], float], list[float]] = {ours: [], reference: []}
    for number in range(rounds):
        for measured in (ours, reference) if number % 2 == 0 else (reference, ours):
            found[measured].append(measured())
    return Rounds(name, tuple(found[ours]), tuple(found[reference]))


def _speed(server: redis.Redis, worker: GuardedProcess, entries: list[bytes]) -> float:
    """Return how many messages per second are taken, processed and acknowledged."""
    began = time.perf_counter()
    server.lpush(QUEUE, *entries)
    while server.llen(QUEUE) or server.hlen("unacked"):
        if not worker.alive or time.perf_counter() - began > ROUND_SECONDS:
            raise BenchmarkFailedError(f"The worker did not finish.\n{worker.tail()}")
        time.sleep(0.01)
    return len(entries) / (time.perf_counter() - began)


def _detector_speed(detector: "Detector", files: list[bytes], batch_size: int) -> float:
    from detector.images.decode import decode

    began = time.perf_counter()
    for start in range(0, len(files), batch_size):
        batch = files[start : start + batch_size]
        detector.examine([detector.prepare(decode(data).pixels) for data in batch])
    return len(files) / (time.perf_counter() - began)


def _check(services: EmbeddedServices, key: str) -> bytes:
    check = ImageCheck(bucket=services.bucket, key=key)
    return encode(check.model_dump(mode="json"), QUEUE)


def _stored(services: EmbeddedServices, files: list[bytes]) -> list[str]:
    store, keys = services.seaweedfs.client(), [f"{number}.jpg" for number in range(len(files))]
    for key, data in zip(keys, files, strict=True):
        store.put_object(Bucket=services.bucket, Key=key, Body=data)
    return keys


@contextmanager
def _worker(kind: str, services: EmbeddedServices, **variables: str) -> Iterator[GuardedProcess]:
    """Run a worker while the block runs; wait first until it consumes."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DNF_")}
    environment = {**inherited, **services.environment(), "DNF_LOG_FORMAT": "json", **variables}
    with tempfile.TemporaryDirectory(prefix="dnf-bench-") as folder:
        log = Path(folder) / "worker.log"
        process = GuardedProcess(
            [sys.executable, "-m", "tests.benchmarks.queue", kind], log=log, environment=environment
        )
        try:
            deadline = time.monotonic() + READY_SECONDS
            while "worker_ready" not in log.read_text(encoding="utf-8", errors="replace"):
                if not process.alive or time.monotonic() > deadline:
                    raise BenchmarkFailedError(f"The worker did not start.\n{process.tail()}")
                time.sleep(0.05)
            yield process
        finally:
            process.stop(grace_seconds=15.0)


def _run_bare() -> None:
    """Run Celery with kombu's own transport, as many threads as ours, and an empty task."""
    from celery import Celery
    from celery.apps.worker import Worker
    from celery.signals import worker_ready
    from kombu import Queue

    app = Celery("bare", broker=os.environ["DNF_REDIS_URL"], set_as_current=False)
    app.conf.update(
        task_acks_late=True,
        task_ignore_result=True,
        task_queues=[Queue(QUEUE)],
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_enable_remote_control=False,
    )

    @app.task(name=CHECK_IMAGE)
    def nothing(_check: object) -> None:
        """Do nothing."""

    def ready(**_: Any) -> None:
        sys.stdout.write("worker_ready\n")
        sys.stdout.flush()

    worker_ready.connect(ready, weak=False)
    Worker(
        app=app,
        pool="threads",
        concurrency=_BARE_THREADS,
        loglevel="WARNING",
        without_gossip=True,
        without_mingle=True,
        quiet=True,
    ).start()


def _run_ours(kind: str) -> None:
    from tests.null_detector import NullDetector
    from worker.process.run import run_worker
    from worker.settings import Settings
    from worker.telemetry.logs import configure_logs

    settings = Settings()
    configure_logs(settings)
    run_worker(settings, detector=NullDetector() if kind == "null" else None)


if __name__ == "__main__":
    if sys.argv[1] == "bare":
        _run_bare()
    else:
        _run_ours(sys.argv[1])
