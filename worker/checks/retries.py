"""What becomes of a check that could not be carried out: it is tried again, or kept as a dead letter."""

import random
import time
from typing import TYPE_CHECKING, Any, NoReturn

import redis
from celery.exceptions import Reject

from worker.broker.dead_letters import check_id_in, dead_letter_of_call
from worker.broker.transport import REFUSED_SECONDS
from worker.checks.batching import ModelFailedError, OutOfMemoryError
from worker.checks.shared_lock import LockTimeoutError
from worker.contract.messages import DeadLetterReason, InvalidMessageError
from worker.storage import StorageUnavailableError
from worker.telemetry.logs import get_logger
from worker.telemetry.metrics import RETRIES, RetryReason

if TYPE_CHECKING:
    from celery.app.task import Task

    from worker.checks.service import Service

log = get_logger(__name__)

# A network that fails twice more on the same picture fails on it always.
MODEL_RETRIES = 2


def retry_or_dead_letter(
    task: "Task[Any, None]", service: "Service", message: object, error: Exception
) -> None:
    """Try a check again that could not be carried out, or keep it as a dead letter when it had its tries."""
    if isinstance(error, LockTimeoutError):
        _put_back(error)
    if isinstance(error, redis.RedisError):
        # Redis cannot be told the outcome yet: the check waits for as long as it takes.
        _retry(task, service, error)
    most = service.settings.max_retries
    reason: DeadLetterReason
    match error:
        case InvalidMessageError():
            reason, tries = error.reason, 0
        case StorageUnavailableError():
            reason, tries = "storage_unavailable", most
        case ModelFailedError(__cause__=OutOfMemoryError()):
            reason, tries = "model_failed", most  # the machine's fault, not the picture's
        case ModelFailedError():
            reason, tries = "model_failed", min(MODEL_RETRIES, most)
        case _:
            reason, tries = "internal_error", min(MODEL_RETRIES, most)
            log.error("check_failed", exc_info=error)
    retries = task.request.retries
    if retries < tries:
        _retry(task, service, error)
    try:
        _dead_letter(task, service, message, InvalidMessageError(reason, str(error) or type(error).__name__))
    except redis.RedisError as unreachable:
        _retry(task, service, unreachable)


def _put_back(crowded: LockTimeoutError) -> NoReturn:
    """Let a check be taken again before the queue behind it: it has waited already, and had no try."""
    RETRIES.labels("crowded").inc()
    log.warning("check_retried", seconds=0.0, why=f"{type(crowded).__name__}: {crowded}")
    raise Reject(str(crowded), requeue=True) from crowded


def retry_delay(retries: int, longest_seconds: float) -> float:
    """Return the seconds before the next try: exponential from 1, full jitter, at most `longest_seconds`."""
    return random.uniform(0.1, max(0.1, min(longest_seconds, 2.0 ** min(retries, 16))))


def _retry(task: "Task[Any, None]", service: "Service", error: Exception) -> NoReturn:
    retries = task.request.retries
    RETRIES.labels(_retry_reason(error)).inc()
    seconds = retry_delay(retries, service.settings.longest_retry_seconds)
    log.warning(
        "check_retried",
        seconds=round(seconds, 1),
        retry=retries + 1,
        why=f"{type(error).__name__}: {error}",
    )
    try:
        task.retry(countdown=seconds, exc=error)
    except Reject as unsent:
        # Celery could not enqueue the retry and would now drop the message; this puts it back, and it is the
        # next to be taken.
        time.sleep(REFUSED_SECONDS)
        raise Reject(str(unsent), requeue=True) from error
    raise AssertionError("unreachable: retry raises")


def _retry_reason(error: Exception) -> RetryReason:
    match error:
        case redis.RedisError():
            return "broker"
        case StorageUnavailableError():
            return "storage_unavailable"
        case ModelFailedError():
            return "model_failed"
        case _:
            return "internal_error"


def _dead_letter(
    task: "Task[Any, None]", service: "Service", message: object, refused: InvalidMessageError
) -> None:
    check_id = check_id_in(message)
    dead_letter = dead_letter_of_call(
        list(task.request.args or ()),
        dict(task.request.kwargs or {}),
        (task.request.delivery_info or {}).get("routing_key"),
        refused,
        service.attempts.total(check_id) if check_id else 0,
    )
    service.dead_letters.write(dead_letter)
    log.error(
        "check_dead_lettered",
        reason=dead_letter.reason,
        detail=dead_letter.detail,
        attempts=dead_letter.attempts,
    )
