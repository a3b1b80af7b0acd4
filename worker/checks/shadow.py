"""A second detector that scores beside the serving one, to be compared before it takes its place.

It has a batcher of its own and never has a say: a check has its verdict whether the shadow answers, fails,
hangs or could not even be loaded.
"""

import threading
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from detector.policy import VerdictName, decide
from worker.checks.batching import Batched, MicroBatcher
from worker.contract.messages import Model, ShadowVerdict
from worker.telemetry import tracing
from worker.telemetry.logs import get_logger
from worker.telemetry.metrics import SHADOW_DIFFERENCE, SHADOW_DISAGREEMENTS, SHADOW_FAILURES

if TYPE_CHECKING:
    from concurrent.futures import Future

    from detector.detector import Detector, Finding
    from worker.settings import Settings

log = get_logger(__name__)


class Shadow:
    """A detector beside the serving one, or without a detector nothing at all.

    `wanted` without a detector is a shadow that could not be loaded: every check counts as failed. A check
    waits for its shadow for `patience_seconds` at most after the serving detector has answered, and a shadow
    that makes no progress for so long is not asked.
    """

    def __init__(
        self,
        detector: "Detector | None" = None,
        *,
        batch_size: int = 1,
        batch_wait_seconds: float = 0.0,
        wanted: bool = False,
        patience_seconds: float = 5.0,
    ) -> None:
        self._detector = detector
        self._wanted = wanted or detector is not None
        self._patience = patience_seconds
        self._batcher: MicroBatcher[NDArray[np.float32], Finding] | None = None
        if detector:
            manifest = detector.bundle.manifest
            self._model = Model(name=manifest.name, version=manifest.version, digest=detector.bundle.digest)
            self._thresholds = manifest.thresholds
            self._batcher = MicroBatcher(
                detector.examine, max_batch=batch_size, wait_seconds=batch_wait_seconds
            )

    @classmethod
    def load(cls, settings: "Settings") -> Self:
        """Load and warm the shadow bundle of the settings, if they name one; log what keeps it from that."""
        if not settings.shadow_bundle:
            return cls()
        from detector.detector import Detector

        try:
            detector = Detector.load(settings.shadow_bundle, device=settings.device, dtype=settings.dtype)
            detector.warm_up(settings.batch_size)
        except Exception as error:  # the serving detector serves on, whatever this one does
            log.exception("shadow_unavailable", bundle=settings.shadow_bundle, why=str(error)[:500])
            return cls(wanted=True)
        manifest = detector.bundle.manifest
        log.info("shadow_loaded", model=f"{manifest.name} {manifest.version}", digest=detector.bundle.digest)
        return cls(
            detector,
            batch_size=settings.batch_size,
            batch_wait_seconds=settings.batch_wait_seconds,
            # Added to the deadline of a check, it stays below the visibility timeout.
            patience_seconds=(settings.visibility_timeout_seconds - settings.check_deadline_seconds) / 2,
        )

    def begin(self, pixels: NDArray[np.uint8]) -> "Future[Batched[Finding]] | None":
        """Let the shadow look at pixels (H, W, 3); None when it cannot."""
        if not self._detector or not self._batcher:
            return None
        # One that hangs costs every check its patience once, and not again and again.
        if self._batcher.stalled_seconds > self._patience:
            return None
        try:
            return self._batcher.submit(self._detector.prepare(pixels), timeout_seconds=0.0)
        except Exception as error:  # noqa: BLE001 - it never fails a check
            log.warning("shadow_failed", why=f"{type(error).__name__}: {error}"[:500])
            return None

    def beside(
        self, waiting: "Future[Batched[Finding]] | None", score: float, verdict: VerdictName
    ) -> ShadowVerdict | None:
        """Return what the shadow says beside the serving score and verdict; count how they differ."""
        if not self._wanted:
            return None
        own = self._answer(waiting) if waiting else None
        if own is None:
            SHADOW_FAILURES.inc()
            return None
        SHADOW_DIFFERENCE.observe(own.score - score)
        if own.verdict != verdict:
            SHADOW_DISAGREEMENTS.labels(verdict, own.verdict).inc()
        return own

    def _answer(self, waiting: "Future[Batched[Finding]]") -> ShadowVerdict | None:
        try:
            with tracing.span("shadow"):
                score = waiting.result(timeout=self._patience).result.probability
            # A score that is not finite, or none at all, is refused here too.
            return ShadowVerdict(model=self._model, score=score, verdict=decide(score, self._thresholds))
        except Exception as error:  # noqa: BLE001 - it never fails a check
            log.warning("shadow_failed", why=f"{type(error).__name__}: {error}"[:500])
            return None
        finally:
            waiting.cancel()

    def close(self) -> None:
        """Finish what the batcher holds, unless it hangs."""
        if self._batcher:
            closing = threading.Thread(target=self._batcher.close, name="shadow-close", daemon=True)
            closing.start()
            closing.join(self._patience)
