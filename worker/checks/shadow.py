"""A second detector that scores the same pictures, to be compared before it replaces the serving one.

It has a batcher of its own and no part in the verdict: a check has its verdict whether the shadow answers,
fails, hangs or could not be loaded.
"""

import threading
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Self

from detector.detector import Detector, Finding
from detector.policy import VerdictName, decide
from worker.checks.batching import Batched, MicroBatcher
from worker.contract.messages import Model, ShadowVerdict
from worker.telemetry import tracing
from worker.telemetry.logs import get_logger
from worker.telemetry.metrics import SHADOW_DIFFERENCE, SHADOW_DISAGREEMENTS, SHADOW_FAILURES

if TYPE_CHECKING:
    from concurrent.futures import Future

    from detector.images.views import Pixels, PreparedPicture
    from worker.settings import Settings

log = get_logger(__name__)


class Shadow:
    """A detector for comparison; without one it does nothing.

    `configured` without a detector is a shadow that could not be loaded: it fails every check. A check waits
    at most `timeout_seconds` for its shadow after the serving detector has answered, and a shadow without
    progress for so long is not asked.
    """

    def __init__(
        self,
        detector: Detector | None = None,
        *,
        batch_size: int = 1,
        batch_wait_seconds: float = 0.0,
        configured: bool = False,
        timeout_seconds: float = 5.0,
        seconds_per_picture: float = 0.0,
    ) -> None:
        #: What it takes of the device for each picture.
        self.seconds_per_picture = seconds_per_picture
        self._detector = detector
        self._configured = configured or detector is not None
        self._timeout = timeout_seconds
        self._batcher: MicroBatcher[PreparedPicture, Finding] | None = None
        if detector:
            manifest = detector.bundle.manifest
            self._model = Model(name=manifest.name, version=manifest.version, digest=detector.bundle.digest)
            self._thresholds = manifest.thresholds
            self._batcher = MicroBatcher(
                detector.examine, max_batch=batch_size, wait_seconds=batch_wait_seconds
            )

    @classmethod
    def load(cls, settings: "Settings") -> Self:
        """Load and warm the shadow bundle, if the settings name one; a failure is logged."""
        if not settings.shadow_bundle:
            return cls()
        try:
            detector = Detector.load(settings.shadow_bundle, device=settings.device, dtype=settings.dtype)
            rate = detector.warm_up(settings.batch_size)
        except Exception as error:  # the serving detector goes on without it
            log.exception("shadow_unavailable", bundle=settings.shadow_bundle, error=str(error)[:500])
            return cls(configured=True)
        manifest = detector.bundle.manifest
        log.info("shadow_loaded", model=f"{manifest.name} {manifest.version}", digest=detector.bundle.digest)
        return cls(
            detector,
            batch_size=settings.batch_size,
            batch_wait_seconds=settings.batch_wait_seconds,
            # Added to the deadline of a check, it stays below the visibility timeout.
            timeout_seconds=(settings.visibility_timeout_seconds - settings.check_deadline_seconds) / 2,
            seconds_per_picture=1 / rate,
        )

    @property
    def preparation_bytes(self) -> int:
        """Bytes that `submit` needs for each pixel of a picture, as `Detector.preparation_bytes`."""
        return self._detector.preparation_bytes if self._detector else 0

    def expecting(self) -> AbstractContextManager[None]:
        """Let the shadow's batches wait for the picture that the block submits."""
        return self._batcher.expecting() if self._batcher else nullcontext()

    def submit(self, picture: "Pixels") -> "Future[Batched[Finding]] | None":
        """Submit a picture to the shadow; None when it cannot take it."""
        if not self._detector or not self._batcher:
            return None
        # A shadow that hangs costs each check in flight one timeout, and later checks none.
        if self._batcher.stalled_seconds > self._timeout:
            return None
        try:
            return self._batcher.submit(self._detector.prepare(picture), timeout_seconds=0.0)
        except Exception as error:  # noqa: BLE001 - it never fails a check
            log.warning("shadow_failed", error=f"{type(error).__name__}: {error}"[:500])
            return None

    def compare(
        self, pending: "Future[Batched[Finding]] | None", score: float, verdict: VerdictName
    ) -> ShadowVerdict | None:
        """Return the shadow's verdict, and count how it differs from the serving score and verdict."""
        if not self._configured:
            return None
        own = self._answer(pending) if pending else None
        if own is None:
            SHADOW_FAILURES.inc()
            return None
        SHADOW_DIFFERENCE.observe(own.score - score)
        if own.verdict != verdict:
            SHADOW_DISAGREEMENTS.labels(verdict, own.verdict).inc()
        return own

    def _answer(self, pending: "Future[Batched[Finding]]") -> ShadowVerdict | None:
        try:
            with tracing.span("shadow"):
                finding = pending.result(timeout=self._timeout).result
            # A score that is not finite raises here.
            score = finding.probability
            verdict = decide(score, self._thresholds, finding.doubt)
            return ShadowVerdict(model=self._model, score=score, verdict=verdict)
        except Exception as error:  # noqa: BLE001 - it never fails a check
            log.warning("shadow_failed", error=f"{type(error).__name__}: {error}"[:500])
            return None
        finally:
            pending.cancel()

    def close(self) -> None:
        """Finish what the batcher holds, unless it hangs."""
        if self._batcher:
            closing = threading.Thread(target=self._batcher.close, name="shadow-close", daemon=True)
            closing.start()
            closing.join(self._timeout)
