"""dnf-worker with a null detector: `python -m tests.workers.null_worker run`.

Everything but the networks is the product's own. Environment variables change how the detector behaves:

- `NULL_BATCH_SECONDS`: how long a batch takes.
- `NULL_LOAD_SECONDS`: how long loading takes.
- `NULL_VIEWS`: how many views of 128 pixels are cut, as for the default bundle; unset: one of 32 pixels.
- `NULL_POISON`: a white picture kills the process from within the model, as a fault in native code does.
- `NULL_HANGS`: the model never returns from a batch.
- `NULL_RAISES`: the model raises RuntimeError.
- `NULL_SWEEP_SECONDS`, `NULL_WATCH_SECONDS`: shorter intervals between sweeps for expired messages and polls
  of the broker watch, so that tests wait less.
- `NULL_SOCKET_SECONDS`: a shorter timeout and health check of Celery's connections to the broker; those of
  attempts and verdicts wait twice as long, as in the product.
- `NULL_EXIT_FILE`: `os._exit` waits until this file exists and half a second more, as when it stores
  coverage; the log has its calls, and whether the interpreter is finalised.
- `NULL_SUPERVISED`: `run` starts a supervisor.
"""

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Self

from celery import Celery

import worker.broker.verdict_stream
import worker.checks.service
import worker.process.run
from detector.bundle.manifest import Preprocessing
from detector.detector import Finding
from detector.images.views import PreparedPicture
from tests.null_detector import NullDetector
from worker.broker.app import create_app
from worker.broker.connection import connect
from worker.cli import main
from worker.process.broker_watch import BrokerWatch
from worker.telemetry.logs import get_logger

BATCH_SECONDS = float(os.environ.get("NULL_BATCH_SECONDS", "0.02"))
LOAD_SECONDS = float(os.environ.get("NULL_LOAD_SECONDS", "0"))
# Of one view of 32 pixels, or of `NULL_VIEWS` of 128.
_VIEWS = int(os.environ.get("NULL_VIEWS", "0"))
PREPROCESSING = Preprocessing(mode="crop", size=128 if _VIEWS else 32, views=_VIEWS or 1)
POISON = "NULL_POISON" in os.environ
HANGS = "NULL_HANGS" in os.environ
RAISES = "NULL_RAISES" in os.environ
SWEEP_SECONDS = float(os.environ.get("NULL_SWEEP_SECONDS", "5"))
WATCH_SECONDS = float(os.environ.get("NULL_WATCH_SECONDS", "5"))
SOCKET_SECONDS = float(os.environ.get("NULL_SOCKET_SECONDS", "5"))

log = get_logger(__name__)


class FaultyDetector(NullDetector):
    """Loads, works and breaks as the environment says."""

    device = os.environ.get("CUDA_VISIBLE_DEVICES", "none")

    @classmethod
    def load(cls, *_: Any, **__: Any) -> Self:
        """Return the detector, after `NULL_LOAD_SECONDS`."""
        time.sleep(LOAD_SECONDS)
        return cls(PREPROCESSING, batch_seconds=BATCH_SECONDS)

    def examine(self, prepared: Sequence[PreparedPicture]) -> list[Finding]:
        """Score by brightness, unless a poisonous picture is in the batch."""
        if POISON and any(picture.views.min() == 255 for picture in prepared):
            os.kill(os.getpid(), signal.SIGSEGV)
            time.sleep(60)
        if HANGS:
            threading.Event().wait()
        if RAISES:
            raise RuntimeError(f"the model was called with {len(prepared)} pictures")
        return super().examine(prepared)


def _exit_slowly(file: Path) -> None:
    exit_now = os._exit

    def exit_later(status: int) -> NoReturn:
        log.info("exit_called", status=status)
        while not file.exists():
            time.sleep(0.01)
        time.sleep(0.5)
        exit_now(status)

    os._exit = exit_later
    atexit.register(log.info, "interpreter_finalised")


def _impatient_app(*arguments: Any) -> Celery:
    app = create_app(*arguments)
    app.conf.broker_transport_options |= {
        "unacked_restore_interval": SWEEP_SECONDS,
        "socket_timeout": SOCKET_SECONDS,
        "health_check_interval": SOCKET_SECONDS,
    }
    return app


if __name__ == "__main__":
    worker.checks.service.Detector = FaultyDetector  # type: ignore[misc]
    worker.process.run.create_app = _impatient_app
    for module in (worker.checks.service, worker.broker.verdict_stream):
        module.connect = partial(connect, timeout_seconds=2 * SOCKET_SECONDS)  # type: ignore[attr-defined]
    worker.process.run.BrokerWatch = partial(BrokerWatch, seconds=WATCH_SECONDS)  # type: ignore[misc,assignment]
    if "NULL_EXIT_FILE" in os.environ:
        _exit_slowly(Path(os.environ["NULL_EXIT_FILE"]))
    # The tests' fleets restart their workers themselves.
    supervised = sys.argv[1:2] != ["run"] or "NULL_SUPERVISED" in os.environ
    main(sys.argv[1:] if supervised else [*sys.argv[1:], "--unsupervised"])
