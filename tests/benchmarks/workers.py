"""The worker programs that are compared: `python -m tests.benchmarks.workers KIND`.

`path` is ours with a null detector, `plain` the plainest Celery task that fetches, decodes and publishes,
`bare` Celery with an empty task, `bundle` ours with the bundle of the settings. The first three have the same
number of threads; `plain` and `bare` have Celery's defaults and kombu's own transport.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from worker.contract.messages import CHECK_IMAGE
from worker.embedded.guarded_process import GuardedProcess
from worker.embedded.services import EmbeddedServices

if TYPE_CHECKING:
    from celery import Celery

Kind = Literal["path", "plain", "bare", "bundle"]

QUEUE = "image-checks"
STREAM = "verdicts"
READY_SECONDS = 300.0

_THREADS = 32
_TICKS = os.sysconf("SC_CLK_TCK")


class BenchmarkFailedError(RuntimeError):
    """A worker did not start or did not finish; the message has the end of its log."""


@dataclass(frozen=True)
class Workers:
    """Worker processes of one kind on one database."""

    processes: tuple[GuardedProcess, ...]

    @property
    def cpu_seconds(self) -> float:
        """Processor time of all of them so far, user and system."""
        return sum(cpu_seconds(process.pid) for process in self.processes)

    @property
    def peak_bytes(self) -> int:
        """The most memory that any of them had at one time."""
        return max(_peak_bytes(process.pid) for process in self.processes)

    def require_alive(self) -> None:
        """Raise `BenchmarkFailedError` if one has ended."""
        for process in self.processes:
            if not process.alive:
                raise BenchmarkFailedError(f"A worker has ended.\n{process.tail()}")


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


@contextmanager
def running(
    kind: Kind, services: EmbeddedServices, *, count: int = 1, database: int = 0, **variables: str
) -> Iterator[Workers]:
    """Run workers while the block runs; wait first until they consume. Raises `BenchmarkFailedError`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DNF_")}
    environment = {
        **inherited,
        **services.environment(),
        "DNF_REDIS_URL": database_url(services, database),
        "DNF_LOG_FORMAT": "json",
        **variables,
    }
    command = [sys.executable, "-m", "tests.benchmarks.workers", kind]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dnf-bench-")))
        processes: list[GuardedProcess] = []
        for number in range(count):
            process = GuardedProcess(command, log=folder / f"{number}.log", environment=environment)
            stack.callback(process.stop, grace_seconds=15.0)
            processes.append(process)
        deadline = time.monotonic() + READY_SECONDS
        for process in processes:
            while "worker_ready" not in process.log.read_text(encoding="utf-8", errors="replace"):
                if not process.alive or time.monotonic() > deadline:
                    raise BenchmarkFailedError(f"The worker did not start.\n{process.tail()}")
                time.sleep(0.05)
        yield Workers(tuple(processes))


def database_url(services: EmbeddedServices, database: int) -> str:
    """Return the URL of a database of the embedded broker."""
    return f"{services.redis_url.removesuffix('/0')}/{database}"


def _run_ours(*, null: bool) -> None:
    from detector.bundle.manifest import Preprocessing
    from tests.null_detector import NullDetector
    from worker.process.run import run_worker
    from worker.settings import Settings
    from worker.telemetry.logs import configure_logs

    settings = Settings()
    configure_logs(settings)
    # The views of the default bundle.
    detector = NullDetector(Preprocessing(mode="crop", size=128, views=9)) if null else None
    run_worker(settings, detector=detector)


def _celery_app() -> "Celery":
    from celery import Celery

    app = Celery("plain", broker=os.environ["DNF_REDIS_URL"], set_as_current=False)
    app.conf.update(task_ignore_result=True, task_default_queue=QUEUE, worker_hijack_root_logger=False)
    return app


def _empty_task(app: "Celery") -> None:
    @app.task(name=CHECK_IMAGE)
    def nothing(_check: object) -> None:
        """Do nothing."""


def _plain_task(app: "Celery") -> None:
    import json
    from io import BytesIO

    import boto3
    import numpy as np
    import redis
    from botocore.config import Config
    from PIL import Image

    s3 = boto3.client(
        "s3",
        endpoint_url=os.environ["DNF_S3_ENDPOINT_URL"],
        region_name=os.environ["DNF_S3_REGION"],
        aws_access_key_id=os.environ["DNF_S3_ACCESS_KEY_ID"],
        aws_secret_access_key=os.environ["DNF_S3_SECRET_ACCESS_KEY"],
        config=Config(max_pool_connections=_THREADS),
    )
    server = redis.Redis.from_url(os.environ["DNF_REDIS_URL"])

    @app.task(name=CHECK_IMAGE)
    def check(message: dict[str, Any]) -> None:
        """Fetch, decode, score by brightness, publish."""
        data = s3.get_object(Bucket=message["bucket"], Key=message["key"])["Body"].read()
        pixels = np.asarray(Image.open(BytesIO(data)).convert("RGB"))
        verdict = {"check_id": message["check_id"], "score": float(pixels[0].mean() / 255)}
        server.xadd(STREAM, {"event": json.dumps(verdict)})


def _run_celery(register: "Callable[[Celery], None]") -> None:
    from celery.apps.worker import Worker
    from celery.signals import worker_ready

    def ready(**_: Any) -> None:
        sys.stdout.write("worker_ready\n")
        sys.stdout.flush()

    app = _celery_app()
    register(app)
    worker_ready.connect(ready, weak=False)
    Worker(app=app, pool="threads", concurrency=_THREADS, loglevel="WARNING", quiet=True).start()


if __name__ == "__main__":
    match sys.argv[1]:
        case "bare":
            _run_celery(_empty_task)
        case "plain":
            _run_celery(_plain_task)
        case kind:
            _run_ours(null=kind == "path")
