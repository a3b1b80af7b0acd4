"""What becomes of a check that raised: it is retried, or dead-lettered after its retries."""

import random
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

import redis
from celery.exceptions import Reject

from worker.broker.dead_letters import dead_letter_of_check
from worker.broker.transport import REFUSED_SECONDS
from worker.checks.attempts import LockTimeoutError
from worker.checks.batching import ModelFailedError, OutOfMemoryError
from worker.contract.messages import DeadLetterReason, InvalidMessageError
from worker.storage import StorageUnavailableError
from worker.telemetry.logs import get_logger
from worker.telemetry.metrics import RETRIES

if TYPE_CHECKING:
    from celery.app.task import Task

    from worker.checks.service import Service

log = get_logger(__name__)

# Networks that fail twice more on the same picture fail on it always.
MODEL_RETRIES = 2


def retry_or_dead_letter(task: "Task[Any, None]", service: "Service", message: str, error: Exception) -> None:
    """Retry a check that raised, or write its dead letter when it has no retry left."""
    if isinstance(error, LockTimeoutError):
        _requeue(error)
    if isinstance(error, redis.RedisError):
        # Redis cannot be told any outcome: the check is retried for as long as that takes.
        _retry(task, service, error, "broker")
    reason, retries = _fault(error, service.settings.max_retries)
    if reason == "internal_error":
        log.error("check_failed", exc_info=error)
    if task.request.retries < retries:
        _retry(task, service, error, reason)
    try:
        _write_dead_letter(task, service, message, reason, error)
    except redis.RedisError as unreachable:
        _retry(task, service, unreachable, "broker")


def retry_delay(retries: int, longest_seconds: float) -> float:
    """Return the back-off in seconds: exponential from 1, full jitter, at most `longest_seconds`."""
    return random.uniform(0.1, max(0.1, min(longest_seconds, 2.0 ** min(retries, 16))))


def _fault(error: Exception, max_retries: int) -> tuple[DeadLetterReason, int]:
    """Return the reason of an error's dead letter, and the retries before it is written."""
    match error:
        case InvalidMessageError():
            return error.reason, 0
        case StorageUnavailableError():
            return "storage_unavailable", max_retries
        # The machine is at fault, not the picture.
        case MemoryError():
            return "out_of_memory", max_retries
        case ModelFailedError(__cause__=OutOfMemoryError()):
            return "model_failed", max_retries
        case ModelFailedError():
            return "model_failed", min(MODEL_RETRIES, max_retries)
        case _:
            return "internal_error", min(MODEL_RETRIES, max_retries)


def _requeue(timeout: LockTimeoutError) -> NoReturn:
    """Requeue a check before the queue behind it: it has waited already, and had no attempt."""
    RETRIES.labels("lock_timeout").inc()
    log.warning("check_retried", seconds=0.0, error=f"{type(timeout).__name__}: {timeout}")
    raise Reject(str(timeout), requeue=True) from timeout


def _retry(task: "Task[Any, None]", service: "Service", error: Exception, reason: str) -> NoReturn:
    retries = task.request.retries
    RETRIES.labels(reason).inc()
    seconds = retry_delay(retries, service.settings.longest_retry_seconds)
    log.warning(
        "check_retried",
        seconds=round(seconds, 1),
        retry=retries + 1,
        error=f"{type(error).__name__}: {error}",
    )
    check_id = (task.request.headers or {}).get("check_id")
    if check_id and reason != "broker":
        with suppress(redis.RedisError):  # it is for people; the retry does not depend on it
            service.attempts.note_retry(check_id, reason, str(error) or type(error).__name__)
    # By the broker's clock: another worker may take the retry, whose clock differs from ours.
    offset = float((task.request.headers or {}).get("clock_offset", 0.0))
    eta = datetime.now(UTC) + timedelta(seconds=seconds + offset)
    try:
        task.retry(eta=eta, exc=error)
    except Reject as unsent:
        # Celery could not enqueue the retry and would now drop the message. Requeued, it is taken next.
        time.sleep(REFUSED_SECONDS)
        raise Reject(str(unsent), requeue=True) from error
    raise AssertionError("unreachable: retry raises")


def _write_dead_letter(
    task: "Task[Any, None]",
    service: "Service",
    message: str,
    reason: DeadLetterReason,
    error: Exception,
) -> None:
    check_id = (task.request.headers or {}).get("check_id")
    queue = (task.request.delivery_info or {}).get("routing_key")
    detail = str(error) or type(error).__name__
    attempts = service.attempts.total(check_id) if check_id else 0
    invalid = InvalidMessageError(reason, detail, check_id)
    service.dead_letters.write(dead_letter_of_check(message, queue, invalid, attempts), unless_published=True)
