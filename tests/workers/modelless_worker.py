"""dnf-worker whose model raises whenever it is called: `python -m tests.workers.modelless_worker run`."""

from collections.abc import Sequence
from typing import Any

import worker.checks.service
from detector.detector import Detector, Finding
from worker.cli import main


class AbsentModel(Detector):
    """Loads the bundle, for its digest, and has no networks."""

    def warm_up(self, batch_size: int) -> None:
        """No-op: there is nothing to warm up."""

    def examine(self, prepared: Sequence[Any]) -> list[Finding]:
        """Raise RuntimeError."""
        raise RuntimeError(f"the model was called with {len(prepared)} pictures")


if __name__ == "__main__":
    worker.checks.service.Detector = AbsentModel  # type: ignore[misc]
    main()
