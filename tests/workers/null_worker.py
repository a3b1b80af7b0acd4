"""dnf-worker with a null detector: `python -m tests.workers.null_worker run`.

Queue, store, decoding, batches, deliveries and publishing are the product's own; only the two networks are
not there. A batch takes `NULL_BATCH_SECONDS`. With `NULL_POISON` a white picture ends the process from
within the model, as a fault in native code does, and takes along whatever is in flight beside it. With
`NULL_HANGS` the model never comes back from a batch.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

import worker.checks.service
from detector.detector import Finding
from tests.null_detector import NullDetector
from worker.cli import main

HANGS = bool(os.environ.get("NULL_HANGS"))
LOAD_SECONDS = float(os.environ.get("NULL_LOAD_SECONDS", "0"))
BATCH_SECONDS = float(os.environ.get("NULL_BATCH_SECONDS", "0.02"))
POISON = "NULL_POISON" in os.environ


class FaultyDetector(NullDetector):
    """Loads, works and breaks as the environment says."""

    device = os.environ.get("CUDA_VISIBLE_DEVICES", "none")

    @classmethod
    def load(cls, *_: Any, **__: Any) -> Self:
        """Return the detector, after `NULL_LOAD_SECONDS`."""
        time.sleep(LOAD_SECONDS)
        return cls(batch_seconds=BATCH_SECONDS)

    def examine(self, prepared: Sequence[NDArray[np.float32]]) -> list[Finding]:
        """Judge by brightness, unless there is poison in the batch."""
        if POISON and any(float(views.min()) == 1.0 for views in prepared):
            os.kill(os.getpid(), signal.SIGSEGV)
            time.sleep(60)
        if HANGS:
            threading.Event().wait()
        return super().examine(prepared)


if __name__ == "__main__":
    worker.checks.service.Detector = FaultyDetector  # type: ignore[misc]
    # A fleet of the tests starts its workers again by itself.
    supervised = sys.argv[1:2] != ["run"] or "NULL_SUPERVISED" in os.environ
    main(sys.argv[1:] if supervised else [*sys.argv[1:], "--unsupervised"])
