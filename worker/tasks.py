"""check_image: the main flow of a worker, top to bottom."""

import hashlib
import random
from io import BytesIO
from typing import Any

import redis
from celery import Celery
from celery.app.task import Task
from celery.exceptions import Reject
from PIL import Image
from pydantic import JsonValue, ValidationError

from detector.images import ImageLimits, ImageRejected, Picture, decode
from detector.policy import decide
from detector.thumbnail import dnf_thumbnail
from worker.logs import get_logger
from worker.messages import (
    CHECK_IMAGE,
    DeadLetter,
    DeadLetterReason,
    ImageCheck,
    PictureFacts,
    Rejection,
    RejectionEvent,
    Thumbnail,
    Verdict,
    VerdictEvent,
    event_id,
)
from worker.service import Service
from worker.stopwatch import Stopwatch
from worker.storage import StorageRejected, StorageUnavailable

log = get_logger("worker.tasks")

LONGEST_RETRY_SECONDS = 30.0


def check_image(service: Service, message: JsonValue) -> None:
    """Judge one upload and publish what came of it, once.

    Raises `StorageUnavailable` when the object store cannot serve the picture now: the check is to be
    tried again later.
    """
    watch = Stopwatch()
    try:
        check = ImageCheck.model_validate(message)
    except ValidationError as error:
        _bury(service, message, "malformed_message", _first_problem(error), deliveries=0)
        return
    if check.policy != "default":
        _bury(service, message, "unknown_policy", f"There is no policy {check.policy}.", deliveries=0)
        return
    delivery = service.deliveries.count(check.check_id)
    watch.add_queue_wait(check.submitted_at)
    try:
        with watch.stage("fetch"):
            data = service.storage.fetch(check)
        with watch.stage("decode"):
            picture = decode(data, ImageLimits(max_pixels=service.settings.max_pixels))
    except (StorageRejected, ImageRejected) as rejected:
        _publish_rejection(service, check, rejected, watch, delivery)
        return
    with watch.stage("prepare"):
        views = service.detector.prepare(picture.pixels)
    try:
        waiting = service.batcher.submit(views)
        batched = waiting.result(timeout=service.settings.check_deadline_seconds)
    except Exception as error:  # noqa: BLE001 - the networks may raise anything; the message is kept
        _bury(service, message, "model_failed", f"{type(error).__name__}: {error}", deliveries=delivery)
        return
    finding = batched.result
    watch.add("batch_wait", batched.wait_ms)
    watch.add("dnf", finding.dnf_ms)
    watch.add("classify", finding.classify_ms)
    thresholds = service.detector.bundle.manifest.thresholds
    verdict = decide(finding.probability, thresholds)
    with watch.stage("thumbnail"):
        thumbnail = dnf_thumbnail(finding.dnf, service.settings.thumbnail_side_pixels)
    outcome = Verdict(
        **_outcome(service, check, watch, delivery),
        verdict=verdict,
        score=finding.probability,
        thresholds=thresholds,
        model=service.model,
        picture=_facts(data, picture),
        thumbnail=_described(thumbnail),
        batch_size=batched.batch_size,
    )
    published = service.results.publish(
        VerdictEvent(**_envelope(service, check), data=outcome), thumbnail=thumbnail
    )
    log.info(
        "image_checked",
        check_id=check.check_id,
        verdict=verdict,
        score=round(finding.probability, 4),
        model=f"{service.model.name} {service.model.version}",
        durations_ms=outcome.durations_ms,
        bytes=len(data),
        batch_size=batched.batch_size,
        delivery=delivery,
        published=published,
    )


def register(app: Celery, service: Service) -> None:
    """Make `check_image` a task of the application, with retries while the object store is out of reach."""

    # Celery would refuse wrong arguments before the task runs, and the message would be lost.
    @app.task(name=CHECK_IMAGE, bind=True, typing=False, max_retries=service.settings.max_retries)
    def task(self: "Task[Any, None]", *args: Any, **kwargs: Any) -> None:
        message: JsonValue = args[0] if len(args) == 1 and not kwargs else [list(args), kwargs]
        try:
            check_image(service, message)
        except StorageUnavailable as unavailable:
            if self.request.retries >= service.settings.max_retries:
                _bury(
                    service, message, "storage_unavailable", str(unavailable), deliveries=self.request.retries + 1
                )
                return
            countdown = retry_delay(self.request.retries)
            log.warning("image_check_postponed", seconds=round(countdown, 1), why=str(unavailable))
            raise self.retry(countdown=countdown, exc=unavailable) from unavailable
        except redis.RedisError as error:
            log.error("results_unavailable", why=str(error))  # noqa: TRY400 - the cause is the server's state
            raise Reject(error, requeue=True) from error


def retry_delay(retries: int) -> float:
    """Return the seconds before the next try: exponential from 1, full jitter, at most 30.

    The bound is below the visibility timeout, beyond which Redis would deliver the waiting check again.
    """
    return random.uniform(0.1, min(LONGEST_RETRY_SECONDS, 2.0**retries))


def _publish_rejection(
    service: Service, check: ImageCheck, rejected: StorageRejected | ImageRejected, watch: Stopwatch, delivery: int
) -> None:
    outcome = Rejection(
        **_outcome(service, check, watch, delivery), reason=rejected.reason, sentence=str(rejected)
    )
    published = service.results.publish(RejectionEvent(**_envelope(service, check), data=outcome))
    log.info(
        "image_rejected",
        check_id=check.check_id,
        reason=rejected.reason,
        durations_ms=outcome.durations_ms,
        delivery=delivery,
        published=published,
    )


def _bury(
    service: Service, message: JsonValue, reason: DeadLetterReason, sentence: str, *, deliveries: int
) -> None:
    service.results.bury(
        DeadLetter(message=message, reason=reason, sentence=sentence, deliveries=deliveries)
    )
    log.error("dead_letter_written", reason=reason, sentence=sentence, deliveries=deliveries)


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in first['loc']) or 'message'}: {first['msg']}"


def _outcome(service: Service, check: ImageCheck, watch: Stopwatch, delivery: int) -> dict[str, Any]:
    return {
        "check_id": check.check_id,
        "policy": check.policy,
        "durations_ms": watch.read(),
        "delivery": delivery,
        "worker": service.name,
        "metadata": check.metadata,
    }


def _envelope(service: Service, check: ImageCheck) -> dict[str, Any]:
    return {
        "id": event_id(check.check_id, service.model.digest, check.policy),
        "source": service.settings.source,
        "subject": check.uri,
    }


def _facts(data: bytes, picture: Picture) -> PictureFacts:
    return PictureFacts(
        sha256=hashlib.sha256(data).hexdigest(),
        width=picture.width,
        height=picture.height,
        format=picture.format,
        bytes=len(data),
    )


def _described(thumbnail: bytes) -> Thumbnail:
    width, height = Image.open(BytesIO(thumbnail)).size
    return Thumbnail(width=width, height=height, sha256=hashlib.sha256(thumbnail).hexdigest())
