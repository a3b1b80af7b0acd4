"""Real services, a real worker process and pictures, for every test that asks for them."""

import io
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from subprocess import Popen
from typing import Any, Protocol

import numpy as np
import pytest
from PIL import Image, ImageFilter

from worker.embedded.guarded_process import GuardedProcess
from worker.embedded.services import EmbeddedServices

# On a machine that is busy with other things, every deadline of the tests may be stretched.
PATIENCE = float(os.environ.get("DNF_TEST_PATIENCE", "1"))

WORKER_START_SECONDS = 120.0 * PATIENCE

# A shell lets what it starts in the background ignore these, and a worker goes on to ignore what it ignored
# at its start; the tests tell workers to stop by them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

_databases = itertools.count(1)


class RunningWorker:
    """A worker process of the product, with its own Valkey database and its log in a file."""

    def __init__(self, environment: Mapping[str, str], log: Path, module: str = "worker.cli") -> None:
        self.environment = dict(environment)
        self.log = log
        self.module = module
        self.guarded: GuardedProcess | None = None

    @property
    def process(self) -> Popen[bytes]:
        """The process itself."""
        assert self.guarded is not None
        return self.guarded.popen

    @property
    def redis_url(self) -> str:
        """The worker's own Valkey database."""
        return self.environment["DNF_REDIS_URL"]

    def start(self) -> None:
        """Start the worker, and again after it ended; return when it consumes."""
        known = len(self.log_lines())
        # Few threads of the numerics: the tests share their cores with the services.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("DNF_")}
        self.guarded = GuardedProcess(
            [sys.executable, "-m", self.module, "run"],
            log=self.log,
            environment={**inherited, "OMP_NUM_THREADS": "1", **self.environment},
        )
        deadline = time.monotonic() + WORKER_START_SECONDS
        while not any(line.get("event") == "worker_ready" for line in self.log_lines()[known:]):
            if not self.guarded.alive or time.monotonic() > deadline:
                status = self.guarded.kill()
                pytest.fail(f"the worker did not start (status {status}):\n{self.guarded.tail(40)}")
            time.sleep(0.05)

    def log_lines(self) -> list[dict[str, Any]]:
        """Return the JSON objects of the worker's log so far, over all its starts."""
        if not self.log.exists():
            return []
        lines = []
        for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                parsed = json.loads(line)
            except ValueError:
                continue
            if isinstance(parsed, dict):
                lines.append(parsed)
        return lines

    def wait_for_event(
        self, event: str, *, count: int = 1, seconds: float = 60.0, **fields: Any
    ) -> list[dict[str, Any]]:
        """Return the log lines of an event with these fields, once there are `count` of them."""
        deadline = time.monotonic() + seconds * PATIENCE
        while True:
            found = [
                line
                for line in self.log_lines()
                if line.get("event") == event and all(line.get(k) == v for k, v in fields.items())
            ]
            if len(found) >= count:
                return found
            if time.monotonic() > deadline:
                tail = self.guarded.tail(40) if self.guarded else ""
                pytest.fail(f"{len(found)} of {count} {event} in {seconds} seconds:\n{tail}")
            time.sleep(0.05)

    def stop(self) -> int:
        """Stop the worker in order and return its exit status."""
        assert self.guarded is not None
        return self.guarded.stop(grace_seconds=30.0)

    def kill(self) -> None:
        """Kill the worker as a crash would."""
        assert self.guarded is not None
        self.guarded.kill()


class StartWorker(Protocol):
    """Starts workers; all of them end with the module."""

    def __call__(self, environment: Mapping[str, str] | None = None) -> RunningWorker:
        """Return a worker that consumes, with `environment` on top of that of the services."""


class MakePicture(Protocol):
    """Makes pictures."""

    def __call__(self, seed: int = 0, size: tuple[int, int] = (96, 80), format: str = "JPEG") -> bytes:  # noqa: A002
        """Return an encoded picture of (width, height) pixels with content like a photograph's."""


@pytest.fixture(scope="session")
def services() -> Iterator[EmbeddedServices]:
    """Provide Valkey and SeaweedFS for the whole session."""
    with EmbeddedServices(bucket="test-uploads") as running:
        yield running


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide a bundle in the real format, untrained, that loads in a second."""
    from tests.tiny_bundle import make_tiny_bundle

    return make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def service_environment(services: EmbeddedServices, tiny_bundle: Path) -> dict[str, str]:
    """Return the DNF_ variables of this module: the services, a database of its own, the tiny bundle."""
    return {
        **services.environment(),
        "DNF_REDIS_URL": services.redis_url.removesuffix("/0") + f"/{next(_databases)}",
        "DNF_BUNDLE": str(tiny_bundle),
        "DNF_LOG_FORMAT": "json",
    }


@pytest.fixture(scope="module")
def worker_process(
    service_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StartWorker]:
    """Provide a function that starts real workers on this module's database."""
    started: list[RunningWorker] = []

    def start(environment: Mapping[str, str] | None = None) -> RunningWorker:
        log = tmp_path_factory.mktemp("worker") / "worker.log"
        worker = RunningWorker({**service_environment, **(environment or {})}, log)
        started.append(worker)
        worker.start()
        return worker

    yield start
    for worker in started:
        if worker.guarded is not None:
            worker.guarded.stop(grace_seconds=30.0)


@pytest.fixture(scope="session")
def make_picture() -> MakePicture:
    """Provide a function that makes pictures."""
    return _picture


def _picture(seed: int = 0, size: tuple[int, int] = (96, 80), format: str = "JPEG") -> bytes:  # noqa: A002
    """Blurred noise of several scales over a gradient, with some grain on top: smooth areas and edges."""
    random = np.random.default_rng(seed)
    width, height = size
    canvas = np.linspace(60, 180, width)[None, :, None] + np.linspace(-30, 30, height)[:, None, None]
    canvas = canvas + random.normal(0, 3, (height, width, 3))
    for radius in (2, 8):
        noise = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        canvas = (
            canvas + (np.asarray(noise.filter(ImageFilter.GaussianBlur(radius)), dtype=float) - 127) * 1.5
        )
    encoded = io.BytesIO()
    Image.fromarray(canvas.clip(0, 255).astype(np.uint8)).save(encoded, format, quality=90)
    return encoded.getvalue()


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """Provide a function that polls a condition until it holds, or fails with `what` after `seconds`."""

    def wait(condition: Callable[[], object], what: str, *, seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds * PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"not within {seconds} seconds: {what}")
            time.sleep(0.05)

    return wait
