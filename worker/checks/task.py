"""check_image: the main flow of a worker, top to bottom."""

import hashlib
import math
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from detector.images.decode import ImageLimits, ImageRejectedError, Picture, decode
from detector.images.thumbnail import dnf_thumbnail
from detector.policy import decide
from worker.checks.batching import ModelFailedError
from worker.checks.observation import attempt_observed, check_observed
from worker.checks.retries import retry_or_dead_letter
from worker.checks.verdict_cache import Judged
from worker.contract.messages import (
    CHECK_IMAGE,
    ImageCheck,
    InvalidMessageError,
    PictureFacts,
    Rejection,
    RejectionEvent,
    Thumbnail,
    Verdict,
    VerdictEvent,
    event_id,
    first_fault,
)
from worker.storage import StorageRejectedError
from worker.telemetry import tracing
from worker.telemetry.logs import get_logger
from worker.telemetry.metrics import CACHE_HITS, count_check
from worker.telemetry.timings import Stopwatch

if TYPE_CHECKING:
    import numpy as np
    from celery import Celery
    from celery.app.task import Task
    from numpy.typing import NDArray

    from detector.detector import Finding
    from worker.checks.batching import Batched
    from worker.checks.service import Service
    from worker.contract.messages import ShadowVerdict

log = get_logger(__name__)


def check_image(service: "Service", message: object) -> None:
    """Judge one upload and publish what came of it, once.

    Raises `InvalidMessageError`; and `StorageUnavailableError`, `ModelFailedError`, `LockTimeoutError` and
    redis.RedisError when the check is to be retried.
    """
    check = _understood(message)
    with service.attempts.begin(check.check_id) as attempt:
        attempt_observed(attempt.number)
        if attempt.number > 1 and service.results.answered(check.check_id):
            log.info("check_already_answered")
            return
        _judge(service, check, attempt.number)


def _judge(service: "Service", check: ImageCheck, attempt: int) -> None:
    watch = Stopwatch()
    watch.add_queue_wait(check.submitted_at)
    try:
        with watch.stage("fetch"):
            data = service.storage.fetch(check)
        found = _found_before(service, check, data, watch)
        judged, batch_size, shadow = (found, 0, None) if found else _judged(service, data, watch)
    except (StorageRejectedError, ImageRejectedError) as rejected:
        _publish_rejection(service, check, rejected, watch, attempt)
        return
    thresholds = service.detector.bundle.manifest.thresholds
    verdict = decide(judged.score, thresholds)
    outcome = Verdict(
        **_outcome(service, check, watch, attempt),
        verdict=verdict,
        score=judged.score,
        thresholds=thresholds,
        model=service.model,
        picture=judged.picture,
        thumbnail=_described(judged.thumbnail, judged.thumbnail_side),
        batch_size=batch_size,
        cached=found is not None,
        shadow=shadow,
    )
    with watch.stage("publish"):
        published = service.results.publish(
            VerdictEvent(**_envelope(service, check), data=outcome), thumbnail=judged.thumbnail
        )
    if not found:
        service.verdict_cache.keep(judged, check.policy)
    count_check(verdict, watch.read(), score=judged.score)
    log.info(
        "image_checked",
        verdict=verdict,
        score=round(judged.score, 4),
        model=f"{service.model.name} {service.model.version}",
        durations_ms=outcome.durations_ms,
        bytes=len(data),
        batch_size=batch_size,
        cached=outcome.cached,
        published=published,
    )


def _found_before(service: "Service", check: ImageCheck, data: bytes, watch: Stopwatch) -> Judged | None:
    if not service.verdict_cache.active:
        return None
    with watch.stage("cache"):
        found = service.verdict_cache.find(data, check.policy)
    if found:
        CACHE_HITS.inc()
    return found


def _judged(service: "Service", data: bytes, watch: Stopwatch) -> tuple[Judged, int, "ShadowVerdict | None"]:
    """Return what the model finds, the size of its batch, and what a shadow says beside it.

    Raises `ImageRejectedError` and `ModelFailedError`.
    """
    with watch.stage("decode"):
        picture = decode(data, ImageLimits(max_pixels=service.settings.max_pixels))
    with watch.stage("prepare"):
        views = service.detector.prepare(picture.pixels)
    begun = service.shadow.begin(picture.pixels)
    batched = _examined(service, views, watch)
    side = service.settings.thumbnail_side_pixels
    with watch.stage("thumbnail"):
        thumbnail = dnf_thumbnail(batched.result.dnf, side)
    judged = Judged(
        score=batched.result.probability,
        picture=_facts(data, picture),
        thumbnail=thumbnail,
        thumbnail_side=side,
    )
    verdict = decide(judged.score, service.detector.bundle.manifest.thresholds)
    return judged, batched.batch_size, service.shadow.beside(begun, judged.score, verdict)


def register(app: "Celery", service: "Service") -> None:
    """Make `check_image` a task of the application: what cannot be done now is tried again, and then kept."""

    # Celery itself would refuse wrong arguments before the task runs, and the message would be lost.
    @app.task(name=CHECK_IMAGE, bind=True, typing=False, max_retries=None)
    def task(self: "Task[Any, None]", *args: Any, **kwargs: Any) -> None:
        message = args[0] if len(args) == 1 and not kwargs else {"args": args, "kwargs": kwargs}
        service.in_work.begin((self.request.properties or {})["delivery_tag"])
        with check_observed(self.request, message, service.name):
            try:
                check_image(service, message)
            except Exception as error:  # noqa: BLE001 - Celery would acknowledge whatever raises, and lose it
                retry_or_dead_letter(self, service, message, error)


def _understood(message: object) -> ImageCheck:
    try:
        check = ImageCheck.model_validate(message)
    except ValidationError as error:
        raise InvalidMessageError("malformed_message", first_fault(error)) from error
    if check.policy != "default":
        raise InvalidMessageError("unknown_policy", f"There is no policy {check.policy}.")
    return check


def _examined(service: "Service", views: "NDArray[np.float32]", watch: Stopwatch) -> "Batched[Finding]":
    """Wait for the model, for what is left of the check's time. Raises `ModelFailedError`."""
    try:
        waiting = service.batcher.submit(views, timeout_seconds=_left(service, watch))
        try:
            batched = waiting.result(timeout=_left(service, watch))
        finally:
            waiting.cancel()  # nobody waits any longer for one that is still queued
    except Exception as error:
        raise ModelFailedError(f"{type(error).__name__}: {error}") from error
    if not math.isfinite(batched.result.probability):
        # Compared with a threshold, it would pass for a photograph.
        raise ModelFailedError("the networks gave no finite score")
    watch.add_in_turn(
        batch_wait=batched.wait_ms, dnf=batched.result.dnf_ms, classify=batched.result.classify_ms
    )
    return batched


def _left(service: "Service", watch: Stopwatch) -> float:
    return max(0.001, service.settings.check_deadline_seconds - watch.read()["total"] / 1000)


def _publish_rejection(
    service: "Service",
    check: ImageCheck,
    rejected: StorageRejectedError | ImageRejectedError,
    watch: Stopwatch,
    attempt: int,
) -> None:
    outcome = Rejection(
        **_outcome(service, check, watch, attempt), reason=rejected.reason, detail=str(rejected)
    )
    with watch.stage("publish"):
        published = service.results.publish(RejectionEvent(**_envelope(service, check), data=outcome))
    count_check("rejected", watch.read(), reason=rejected.reason)
    log.info(
        "image_rejected",
        reason=rejected.reason,
        durations_ms=outcome.durations_ms,
        published=published,
    )


def _outcome(service: "Service", check: ImageCheck, watch: Stopwatch, attempt: int) -> dict[str, Any]:
    return {
        "check_id": check.check_id,
        "policy": check.policy,
        "durations_ms": watch.read(),
        "attempt": attempt,
        "worker": service.name,
        "metadata": check.metadata,
    }


def _envelope(service: "Service", check: ImageCheck) -> dict[str, Any]:
    return {
        "id": event_id(check.check_id, service.model.digest, check.policy),
        "source": service.settings.source,
        "subject": check.uri,
        "traceparent": tracing.traceparent(),
    }


def _facts(data: bytes, picture: Picture) -> PictureFacts:
    return PictureFacts(
        sha256=hashlib.sha256(data).hexdigest(),
        width=picture.width,
        height=picture.height,
        format=picture.format,
        bytes=len(data),
    )


def _described(thumbnail: bytes, side: int) -> Thumbnail:
    return Thumbnail(width=side, height=side, sha256=hashlib.sha256(thumbnail).hexdigest())
