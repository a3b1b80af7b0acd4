"""Diagnose the settings alone: variables that are none, time limits against one another, threads."""

import os
from collections.abc import Iterator

from worker.broker.app import create_app
from worker.operations.doctor.diagnosis import Diagnosis, fault, ok, warning
from worker.settings import Settings, unknown_variables

# Lost checks are looked for every 5 seconds, and publishing may wait 10 seconds for the server.
_VISIBILITY_MARGIN_SECONDS = 15

# botocore makes two attempts; each may use the timeout once to connect and once to read.
_STORAGE_WAITS = 4


def diagnose_limits(settings: Settings) -> Iterator[Diagnosis]:
    """Yield the diagnoses."""
    yield _variables()
    yield _visibility_timeout(settings)
    yield _retries(settings)
    yield _socket_timeouts(settings)
    yield _storage_timeout(settings)
    yield _publish_once(settings)
    yield _threads(settings)


def _variables() -> Diagnosis:
    name = "variables"
    if unknown := unknown_variables(os.environ):
        return warning(
            name,
            ", ".join(unknown),
            "No setting has such a name, so these have no effect.",
            "Correct or unset them; `dnf-worker config` lists every setting.",
        )
    return ok(name, "every DNF_ variable is a setting")


def _visibility_timeout(settings: Settings) -> Diagnosis:
    name = "visibility timeout"
    visibility, deadline = settings.visibility_timeout_seconds, settings.check_deadline_seconds
    observed = f"{visibility} s; an attempt ends after {deadline:g} s"
    least = deadline + _VISIBILITY_MARGIN_SECONDS
    if visibility < least:
        return warning(
            name,
            observed,
            "A slow check may be delivered to another worker while it is being published.",
            f"Raise DNF_VISIBILITY_TIMEOUT_SECONDS to {least:.0f}, or lower DNF_CHECK_DEADLINE_SECONDS.",
        )
    return ok(name, observed)


def _retries(settings: Settings) -> Diagnosis:
    name = "retries"
    observed = f"{settings.max_retries}, each after at most {settings.longest_retry_seconds:g} s"
    if settings.max_retries == 0:
        return warning(
            name,
            observed,
            "A check becomes a dead letter at the first failure of the object store.",
            "Set DNF_MAX_RETRIES=20.",
        )
    return ok(name, observed)


def _socket_timeouts(settings: Settings) -> Diagnosis:
    name = "socket timeouts"
    with create_app(settings) as app:
        options = app.conf.broker_transport_options
    keys = ("socket_timeout", "socket_connect_timeout", "health_check_interval")
    limits = {key: options.get(key) for key in keys}
    observed = ", ".join(f"{key} {value} s" for key, value in limits.items())
    if any(not value or value >= settings.visibility_timeout_seconds for value in limits.values()):
        return fault(
            name,
            observed,
            "A frozen connection blocks a worker at least until its checks are delivered to others.",
            "Set DNF_VISIBILITY_TIMEOUT_SECONDS above these limits.",
        )
    return ok(name, observed)


def _storage_timeout(settings: Settings) -> Diagnosis:
    name = "storage timeout"
    longest = _STORAGE_WAITS * settings.s3_timeout_seconds
    observed = f"{settings.s3_timeout_seconds:g} s per wait, {longest:g} s in total"
    if longest > settings.check_deadline_seconds:
        return warning(
            name,
            observed,
            "A store that does not answer blocks a thread for longer than a check may take.",
            f"Set DNF_S3_TIMEOUT_SECONDS to at most {settings.check_deadline_seconds / _STORAGE_WAITS:.0f}.",
        )
    return ok(name, observed)


def _publish_once(settings: Settings) -> Diagnosis:
    name = "publish once"
    attempts = (settings.max_retries + 1) * (settings.check_deadline_seconds + settings.longest_retry_seconds)
    longest = attempts + settings.max_attempts * settings.visibility_timeout_seconds
    ttl = settings.publish_once_ttl_seconds
    observed = f"a check id is remembered for {ttl} s; a check may live for {longest:.0f} s"
    if ttl < longest:
        return fault(
            name,
            observed,
            "A check that is delivered late would be published a second time.",
            f"Set DNF_PUBLISH_ONCE_TTL_SECONDS to at least {longest:.0f}.",
        )
    return ok(name, observed)


def _threads(settings: Settings) -> Diagnosis:
    name = "threads"
    observed = f"{settings.threads} for batches of {settings.batch_size}"
    if settings.threads < 2 * settings.batch_size:
        return warning(
            name,
            observed,
            "Batches will not be full: too few checks are prepared while the model computes a batch.",
            f"Set DNF_THREADS to at least {2 * settings.batch_size} or unset it, or lower DNF_BATCH_SIZE.",
        )
    return ok(name, observed)
