"""check_image: the main flow of a worker, top to bottom."""

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery.exceptions import Reject
from pydantic import ValidationError

from detector.images.decode import ImageLimits, ImageRejectedError, open_picture
from detector.images.doubt import confidence
from detector.images.thumbnail import dnf_thumbnail
from detector.policy import decide
from worker.checks.batching import ModelFailedError
from worker.checks.observation import CheckOutcome, Observation, check_observed
from worker.checks.retries import retry_or_dead_letter
from worker.checks.verdict_cache import Judgement
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
    ViewScore,
    event_id,
    first_fault,
)
from worker.storage import StorageRejectedError
from worker.telemetry import tracing
from worker.telemetry.timings import Timings

if TYPE_CHECKING:
    from concurrent.futures import Future

    from celery import Celery
    from celery.app.task import Task

    from detector.detector import Finding, ScoredView
    from worker.checks.attempts import Attempt
    from worker.checks.batching import Batched
    from worker.checks.service import Service
    from worker.storage import Upload

# Enough for a picture of the scores; every digit is in each event nine times.
_VIEW_SCORE_DIGITS = 4


@dataclass(frozen=True)
class Delivery:
    """The message that asks for a check, as it was taken from its queue."""

    #: Tells a second submission from a second delivery.
    message_id: str
    #: Names this taking of the message until it is acknowledged.
    tag: str


def check_image(
    service: "Service", message: str, delivery: Delivery, observation: Observation
) -> CheckOutcome | None:
    """Judge one upload and publish the outcome, once; None when its event was published before.

    `message` is the check as JSON. It is acknowledged with the event. An event that was published before is
    published again for a second submission, and not for a second delivery.

    Raises `InvalidMessageError`; and `StorageUnavailableError`, `ModelFailedError`, `LockTimeoutError`,
    MemoryError and redis.RedisError when the check is to be retried.
    """
    check = _validated(message)
    with service.attempts.start(check.check_id) as attempt:
        observation.attempt_started(attempt.number)
        if attempt.number > 1:
            published_again = service.verdict_stream.publish_again(check.check_id, delivery.message_id)
            if published_again is not None:
                observation.answered_before(published_again=published_again)
                return None
        timings = Timings(check.submitted_at)
        try:
            with service.batcher.expecting(), service.shadow.expecting():
                with timings.stage("fetch"):
                    upload = service.storage.fetch(check)
                found = _cached(service, check, upload, timings) or _submitted(service, upload, timings)
                del upload  # a check that waits for the model holds its views alone
            if cached := isinstance(found, Judgement):
                judgement, pending_shadow, batch_size = found, None, 0
            else:
                batched = _examined(service, found.pending, timings)
                judgement = _judgement(service, found.facts, batched.result, timings)
                pending_shadow, batch_size = found.pending_shadow, batched.batch_size
        except (StorageRejectedError, ImageRejectedError) as rejected:
            return _publish_rejection(service, check, attempt, timings, rejected, delivery=delivery)
        verdict = decide(judgement.score, service.thresholds, judgement.doubt)
        data = Verdict(
            check_id=check.check_id,
            policy=check.policy,
            durations_ms=timings.read(),
            attempt=attempt.number,
            worker=service.name,
            metadata=check.metadata,
            verdict=verdict,
            score=judgement.score,
            confidence=confidence(judgement.doubt),
            doubt=judgement.doubt,
            views=judgement.views,
            strongest_view=judgement.strongest_view,
            thresholds=service.thresholds,
            model=service.model,
            picture=judgement.picture,
            thumbnail=_stored_thumbnail(service, judgement, _event_id(service, check)),
            batch_size=batch_size,
            cached=cached,
            shadow=None if cached else service.shadow.compare(pending_shadow, judgement.score, verdict),
        )
        published = _published(
            service,
            check,
            data,
            attempt,
            timings,
            delivery=delivery,
            thumbnail=judgement.thumbnail if data.thumbnail.redis_key else None,
        )
        if not cached:
            service.verdict_cache.store(judgement, check.policy)
        return CheckOutcome(data, published, timings.read())


def register(app: "Celery", service: "Service") -> None:
    """Make `check_image` a task of the application; one that raises is retried, then dead-lettered."""

    # `contract.envelope.decode` has written the one argument. Celery itself would refuse wrong arguments
    # before the task runs, and the message would be lost.
    @app.task(name=CHECK_IMAGE, bind=True, typing=False, max_retries=None)
    def task(self: "Task[Any, None]", message: str) -> None:
        delivery = Delivery(str(self.request.id), (self.request.properties or {})["delivery_tag"])
        if not service.unacknowledged.start(delivery.tag):
            raise Reject("the worker shuts down", requeue=True)
        with check_observed(self.request, service.name) as observation:
            try:
                outcome = check_image(service, message, delivery, observation)
                if outcome:
                    observation.published(outcome)
            except Exception as error:  # noqa: BLE001 - Celery would acknowledge whatever raises, and lose it
                retry_or_dead_letter(self, service, message, error)


def _validated(message: str) -> ImageCheck:
    try:
        check = ImageCheck.model_validate_json(message)
    except ValidationError as error:
        raise InvalidMessageError("malformed_message", first_fault(error)) from error
    if check.policy != "default":
        raise InvalidMessageError("unknown_policy", f"There is no policy {check.policy}.")
    return check


def _cached(service: "Service", check: ImageCheck, upload: "Upload", timings: Timings) -> Judgement | None:
    if not service.verdict_cache.active:
        return None
    with timings.stage("cache"):
        return service.verdict_cache.find(upload.sha256, check.policy)


@dataclass(frozen=True)
class _Submitted:
    """What is left of an upload once the model has its views."""

    facts: PictureFacts
    pending: "Future[Batched[Finding]]"
    pending_shadow: "Future[Batched[Finding]] | None"


def _submitted(service: "Service", upload: "Upload", timings: Timings) -> _Submitted:
    """Decode the upload and cut its views, in memory reserved for that, and submit them to the model.

    Raises `ImageRejectedError`, `ModelFailedError`, and MemoryError when there is none.
    """
    encoded = open_picture(upload.data, ImageLimits(max_pixels=service.settings.max_pixels))
    for_a_pixel = max(service.detector.preparation_bytes, service.shadow.preparation_bytes)
    needed = encoded.memory_bytes + for_a_pixel * encoded.pixel_count
    # Half of the time is left for the model.
    with (
        service.turns.turn(encoded.pixel_count, timeout_seconds=_remaining_seconds(service, timings) / 2),
        service.memory.reserve(needed, timeout_seconds=_remaining_seconds(service, timings) / 2),
    ):
        with timings.stage("decode"):
            picture = encoded.decode()
        with timings.stage("prepare"):
            views = service.detector.prepare(picture)
        pending_shadow = service.shadow.submit(picture)
        facts = PictureFacts(
            sha256=upload.sha256,
            width=picture.width,
            height=picture.height,
            format=picture.format,
            bytes=upload.size,
        )
        del picture  # before its memory is given back
    try:
        pending = service.batcher.submit(views, timeout_seconds=_remaining_seconds(service, timings))
    except Exception as error:
        raise ModelFailedError(f"{type(error).__name__}: {error}") from error
    return _Submitted(facts, pending, pending_shadow)


def _examined(
    service: "Service", pending: "Future[Batched[Finding]]", timings: Timings
) -> "Batched[Finding]":
    """Wait for the model, until the check's deadline. Raises `ModelFailedError`."""
    try:
        batched = pending.result(timeout=_remaining_seconds(service, timings))
    except Exception as error:
        raise ModelFailedError(f"{type(error).__name__}: {error}") from error
    finally:
        pending.cancel()  # an item that is still queued has nobody who waits for it
    if not math.isfinite(batched.result.probability):
        # Compared with a threshold, it would pass for a photograph.
        raise ModelFailedError("the networks gave no finite score")
    timings.add_consecutive(
        batch_wait=batched.wait_ms, dnf=batched.result.dnf_ms, classify=batched.result.classify_ms
    )
    return batched


def _remaining_seconds(service: "Service", timings: Timings) -> float:
    return max(0.001, service.settings.check_deadline_seconds - timings.read()["total"] / 1000)


def _judgement(service: "Service", facts: PictureFacts, finding: "Finding", timings: Timings) -> Judgement:
    side = service.settings.thumbnail_side_pixels
    with timings.stage("thumbnail"):
        thumbnail = dnf_thumbnail(finding.dnf, side)
    return Judgement(
        score=finding.probability,
        doubt=finding.doubt,
        views=tuple(_view_score(view) for view in finding.views),
        strongest_view=finding.strongest,
        picture=facts,
        thumbnail=thumbnail,
        thumbnail_side=side,
    )


def _view_score(view: "ScoredView") -> ViewScore:
    place = view.place
    return ViewScore(
        x=place.x,
        y=place.y,
        width=place.width,
        height=place.height,
        score=round(view.probability, _VIEW_SCORE_DIGITS),
    )


def _stored_thumbnail(service: "Service", judgement: Judgement, event_id: str) -> Thumbnail:
    """Store the thumbnail, if there is a bucket for it; else it goes into Redis with the event.

    Raises `StorageUnavailableError`.
    """
    side, digest = judgement.thumbnail_side, hashlib.sha256(judgement.thumbnail).hexdigest()
    stored = (
        {"uri": service.storage.store_thumbnail(judgement.thumbnail, digest)}
        if service.settings.thumbnail_bucket
        else {"redis_key": service.verdict_stream.thumbnail_key(event_id)}
    )
    return Thumbnail(width=side, height=side, sha256=digest, **stored)


def _publish_rejection(
    service: "Service",
    check: ImageCheck,
    attempt: "Attempt",
    timings: Timings,
    rejected: StorageRejectedError | ImageRejectedError,
    *,
    delivery: Delivery,
) -> CheckOutcome:
    data = Rejection(
        check_id=check.check_id,
        policy=check.policy,
        durations_ms=timings.read(),
        attempt=attempt.number,
        worker=service.name,
        metadata=check.metadata,
        reason=rejected.reason,
        detail=str(rejected),
    )
    published = _published(service, check, data, attempt, timings, delivery=delivery)
    return CheckOutcome(data, published, timings.read())


def _published(
    service: "Service",
    check: ImageCheck,
    data: Verdict | Rejection,
    attempt: "Attempt",
    timings: Timings,
    *,
    delivery: Delivery,
    thumbnail: bytes | None = None,
) -> bool:
    """Publish the event, which ends the attempt and the message; return whether its check had none before."""
    with timings.stage("publish"), service.unacknowledged.settling(delivery.tag) as claimed:
        # Made in this stage, whose span the event names.
        envelope = _envelope(service, check)
        event = (
            VerdictEvent(**envelope, data=data)
            if isinstance(data, Verdict)
            else RejectionEvent(**envelope, data=data)
        )
        published = service.verdict_stream.publish(
            event,
            message_id=delivery.message_id,
            thumbnail=thumbnail,
            ending_attempt=attempt.field,
            acknowledging=delivery.tag if claimed else "",
        )
    attempt.ended = True
    return published


def _event_id(service: "Service", check: ImageCheck) -> str:
    return event_id(check.check_id, service.model.digest, check.policy)


def _envelope(service: "Service", check: ImageCheck) -> dict[str, Any]:
    """Return the attributes of an event; its `traceparent` names the span that is current."""
    return {
        "id": _event_id(service, check),
        "source": service.settings.source,
        "subject": check.uri,
        "traceparent": tracing.traceparent(),
    }
