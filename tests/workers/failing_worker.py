"""dnf-worker whose model fails as a picture says: `python -m tests.workers.failing_worker run`."""

import os
import sys
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

import worker.checks.service
from detector.acceleration.memory import free_memory_after
from detector.detector import Finding
from tests.null_detector import NullDetector
from worker.cli import main

#: Widths, in pixels, of pictures at which the networks raise, run out of memory, or take long the first time,
#: and of one at which this program is at fault.
RAISES, NO_MEMORY, SLOW_ONCE, FAULT = 101, 102, 103, 104

SLOW_SECONDS = float(os.environ.get("SLOW_SECONDS", "0"))


class FailingModel(NullDetector):
    """Judges by brightness, unless a picture has one of the widths."""

    slow = True

    def warm_up(self, batch_size: int) -> None:
        """Load what frees memory, which the first check at fault would wait for."""
        super().warm_up(batch_size)
        free_memory_after(MemoryError())

    def prepare(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the width alone."""
        if pixels.shape[1] == FAULT:
            raise ZeroDivisionError("a fault of the program")
        return np.full_like(super().prepare(pixels), pixels.shape[1])

    def examine(self, prepared: Sequence[NDArray[np.float32]]) -> list[Finding]:
        """Fail, wait or judge."""
        widths = {int(views.flat[0]) for views in prepared}
        if RAISES in widths:
            raise ValueError("the networks raise")
        if NO_MEMORY in widths:
            raise MemoryError("no memory")
        if SLOW_ONCE in widths and self.slow:
            self.slow = False
            time.sleep(SLOW_SECONDS)
        return super().examine(prepared)


if __name__ == "__main__":
    worker.checks.service.Detector = FailingModel  # type: ignore[misc]
    main([*sys.argv[1:], "--unsupervised"])
