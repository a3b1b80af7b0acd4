"""dnf-worker whose model raises whenever it is asked: `python -m tests.workers.modelless_worker run`."""

from collections.abc import Sequence
from typing import Any

import worker.checks.service
from detector.detector import Detector, Finding
from worker.cli import main


class AbsentModel(Detector):
    """Loads the bundle, so that it has its digest, and finds nothing ever."""

    def warm_up(self, batch_size: int) -> None:
        """Do nothing."""

    def examine(self, prepared: Sequence[Any]) -> list[Finding]:
        """Raise RuntimeError."""
        raise RuntimeError(f"the model was asked for {len(prepared)} pictures")


if __name__ == "__main__":
    worker.checks.service.Detector = AbsentModel  # type: ignore[misc]
    main()
