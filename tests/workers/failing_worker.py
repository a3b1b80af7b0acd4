"""dnf-worker whose model fails by the width of a picture: `python -m tests.workers.failing_worker run`."""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

import worker.checks.service
from detector.acceleration.memory import free_memory_after
from detector.detector import Finding
from detector.images.views import Pixels, PreparedPicture
from tests.null_detector import NullDetector
from worker.cli import main

#: Widths in pixels at which the networks raise, run out of memory or are slow once, and at which the program
#: itself raises.
RAISES, NO_MEMORY, SLOW_ONCE, PROGRAM_ERROR = 101, 102, 103, 104

SLOW_SECONDS = float(os.environ.get("SLOW_SECONDS", "0"))


class FailingModel(NullDetector):
    """Scores by brightness, unless a picture has one of the widths."""

    slow = True

    def warm_up(self, batch_size: int) -> float:
        """Load what frees memory, for which the first failing check would wait."""
        free_memory_after(MemoryError())
        return super().warm_up(batch_size)

    def prepare(self, picture: Pixels) -> PreparedPicture:
        """Return views that hold the picture's width."""
        if picture.shape[1] == PROGRAM_ERROR:
            raise ZeroDivisionError("an error of the program")
        prepared = super().prepare(picture)
        return replace(prepared, views=np.full_like(prepared.views, min(picture.shape[1], 255)))

    def examine(self, prepared: Sequence[PreparedPicture]) -> list[Finding]:
        """Fail, wait or score."""
        widths = {int(picture.views.flat[0]) for picture in prepared}
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
