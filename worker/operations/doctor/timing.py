"""Time limits against one another, and threads against the batch: what the settings alone tell."""

from collections.abc import Iterator

from worker.broker.app import create_app
from worker.operations.doctor.check import Check, fault, ok, warning
from worker.settings import Settings

# A sweep for lost checks every 5 seconds, and 10 for a publication that waits for its server.
_VISIBILITY_MARGIN_SECONDS = 15

# botocore tries twice, and each try may take the limit for its connection and again for an answer.
_S3_WAITS = 4


def check_timing(settings: Settings) -> Iterator[Check]:
    """Yield the checks."""
    yield _visibility(settings)
    yield _retries(settings)
    yield _sockets(settings)
    yield _store(settings)
    yield _publish_once(settings)
    yield _threads(settings)


def _visibility(settings: Settings) -> Check:
    name = "visibility timeout"
    visibility, deadline = settings.visibility_timeout_seconds, settings.check_deadline_seconds
    seen = f"{visibility} s; a try of a check ends after {deadline:g} s"
    least = deadline + _VISIBILITY_MARGIN_SECONDS
    if visibility < least:
        return warning(
            name,
            seen,
            "A slow check may be delivered to another worker while it is being published.",
            f"DNF_VISIBILITY_TIMEOUT_SECONDS={least:.0f} or more, or a smaller DNF_CHECK_DEADLINE_SECONDS",
        )
    return ok(name, seen)


def _retries(settings: Settings) -> Check:
    name = "retries"
    seen = f"{settings.max_retries}, each after {settings.longest_retry_seconds:g} s at most"
    if settings.max_retries == 0:
        return warning(
            name,
            seen,
            "One hiccup of the object store makes a dead letter.",
            "DNF_MAX_RETRIES=20",
        )
    return ok(name, seen)


def _sockets(settings: Settings) -> Check:
    name = "socket time limits"
    with create_app(settings) as app:
        options = app.conf.broker_transport_options
    limits = {key: options.get(key) for key in ("socket_timeout", "socket_connect_timeout")}
    limits["health_check_interval"] = options.get("health_check_interval")
    seen = ", ".join(f"{key} {value} s" for key, value in limits.items())
    if any(not value or value >= settings.visibility_timeout_seconds for value in limits.values()):
        return fault(
            name,
            seen,
            "A frozen connection would hang a worker until its checks are delivered elsewhere, or for ever.",
            "DNF_VISIBILITY_TIMEOUT_SECONDS above the limits",
        )
    return ok(name, seen)


def _store(settings: Settings) -> Check:
    name = "store time limits"
    longest = _S3_WAITS * settings.s3_timeout_seconds
    seen = f"{settings.s3_timeout_seconds:g} s a wait, {longest:g} s in all"
    if longest > settings.check_deadline_seconds:
        return warning(
            name,
            seen,
            "A store that does not answer keeps a thread for longer than a check may take.",
            f"DNF_S3_TIMEOUT_SECONDS={settings.check_deadline_seconds / _S3_WAITS:.0f} or less",
        )
    return ok(name, seen)


def _publish_once(settings: Settings) -> Check:
    name = "publish once"
    tries = (settings.max_retries + 1) * (settings.check_deadline_seconds + settings.longest_retry_seconds)
    longest = tries + settings.max_attempts * settings.visibility_timeout_seconds
    ttl = settings.publish_once_ttl_seconds
    seen = f"a check id is remembered for {ttl} s; a check may live for {longest:.0f} s"
    if ttl < longest:
        return fault(
            name,
            seen,
            "A check that is delivered late would be judged and published a second time.",
            f"DNF_PUBLISH_ONCE_TTL_SECONDS={longest:.0f} or more",
        )
    return ok(name, seen)


def _threads(settings: Settings) -> Check:
    name = "threads"
    seen = f"{settings.threads} for batches of {settings.batch_size}"
    if settings.threads < 2 * settings.batch_size:
        return warning(
            name,
            seen,
            "While one batch is in the model too few checks prepare for the next: it will not be full.",
            f"DNF_THREADS={2 * settings.batch_size} or unset, or a smaller DNF_BATCH_SIZE",
        )
    return ok(name, seen)
