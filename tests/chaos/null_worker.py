"""dnf-worker with a null detector: `python -m tests.chaos.null_worker run`.

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
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

import worker.service
from detector.bundle import Bundle
from detector.calibration import PlattScaling
from detector.detector import Detector, Finding
from detector.manifest import DnfConfig, Manifest, Preprocessing, ResNetConfig, UnetSource
from detector.policy import Thresholds
from worker.cli import main

HANGS = bool(os.environ.get("NULL_HANGS"))
LOAD_SECONDS = float(os.environ.get("NULL_LOAD_SECONDS", "0"))
BATCH_SECONDS = float(os.environ.get("NULL_BATCH_SECONDS", "0.02"))
POISON = "NULL_POISON" in os.environ


class NullDetector(Detector):
    """Calls every picture's brightness its probability; loads in no time."""

    device = os.environ.get("CUDA_VISIBLE_DEVICES", "none")
    dtype = "none"

    def __init__(self) -> None:
        manifest = Manifest(
            name="null",
            version="0",
            created="2026-01-01T00:00:00Z",
            preprocessing=Preprocessing(mode="crop", size=32, views=1),
            dnf=DnfConfig(),
            unet=UnetSource(folder="unet"),
            classifier=ResNetConfig(depth=18, width=8),
            calibration=PlattScaling(),
            thresholds=Thresholds(review_from=0.4, generated_from=0.6),
        )
        self.bundle = Bundle(Path(), manifest, "0" * 64)

    @classmethod
    def load(cls, *_: Any, **__: Any) -> Self:
        """Return the detector, after `NULL_LOAD_SECONDS`."""
        time.sleep(LOAD_SECONDS)
        return cls()

    def warm_up(self, batch_size: int) -> None:
        """Do nothing."""

    def examine(self, prepared: Sequence[NDArray[np.float32]]) -> list[Finding]:
        """Judge by brightness, unless there is poison in the batch."""
        if POISON and any(float(views.min()) == 1.0 for views in prepared):
            os.kill(os.getpid(), signal.SIGSEGV)
            time.sleep(60)
        if HANGS:
            threading.Event().wait()
        time.sleep(BATCH_SECONDS)
        return [
            Finding(0.0, float(np.clip(views.mean() / 2 + 0.5, 0, 1)), views[0], 1.0, 1.0)
            for views in prepared
        ]


if __name__ == "__main__":
    worker.service.Detector = NullDetector  # type: ignore[misc]
    # A fleet of the tests starts its workers again by itself.
    main(sys.argv[1:] if os.environ.get("NULL_SUPERVISED") else [*sys.argv[1:], "--unsupervised"])
