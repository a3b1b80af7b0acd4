"""The sender: makes the attempts that are due, several at once, and reports what came of them."""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from types import TracebackType
from typing import TYPE_CHECKING, Self

from worker.database.database import Database
from worker.database.errors import DatabaseUnavailableError
from worker.settings import WebhookSettings
from worker.telemetry.logs import get_logger
from worker.telemetry.relay_metrics import (
    WEBHOOK_ATTEMPTS,
    WEBHOOK_ENDPOINTS_DISABLED,
    WEBHOOK_WAITING_SECONDS,
)
from worker.webhooks import deliveries, endpoints
from worker.webhooks.addresses import Addresses, AddressRefusedError
from worker.webhooks.deliveries import Attempt
from worker.webhooks.exchange import ExchangeFailedError, Exchanges
from worker.webhooks.signing import signed_headers

if TYPE_CHECKING:
    from uuid import UUID

log = get_logger(__name__)

#: Seconds before the second attempt, the third, and so on: three days in all. Each varies by a fifth.
RETRY_DELAYS: tuple[float, ...] = (5, 60, 300, 1800, 7200, 18_000, 36_000, 50_400, 64_800, 79_200)
_JITTER = 0.2
# Attempts at one time, of the process and to one endpoint: one that hangs leaves the others their turn.
_THREADS, _FOR_EACH_ENDPOINT = 16, 4
_IDLE_SECONDS, _HOUSEKEEPING_SECONDS = 0.5, 60.0
# Parts in which old events are deleted in one turn, so that no transaction is long.
_FORGETTING_ROUNDS = 50
# Statuses with which a receiver asks for time.
_BUSY = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}


class Sender:
    """Delivers webhooks while the `with` block runs, turn by turn; any number of processes may do so at once.

    At the end of the block attempts that run are finished.
    """

    def __init__(
        self,
        settings: WebhookSettings,
        database: Database,
        *,
        exchanges: Exchanges | None = None,
        retry_delays: Sequence[float] = RETRY_DELAYS,
    ) -> None:
        self._settings = settings
        self._database = database
        self._exchanges = exchanges or Exchanges(Addresses(settings.networks), ca_file=settings.ca_file)
        self._retry_delays = retry_delays
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="webhook")
        self._lock = threading.Lock()
        # Attempts that run, by endpoint.
        self._running: Counter[UUID] = Counter()
        self._next_housekeeping = 0.0

    def turn(self) -> float:
        """Start the attempts that are due; return the seconds until the next turn.

        Raises `DatabaseUnavailableError`.
        """
        if time.monotonic() >= self._next_housekeeping:
            self._keep_house()
        return 0 if self._start_due() else _IDLE_SECONDS

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown()

    def attempt(self, attempt: Attempt) -> None:
        """Make one attempt and report its outcome. Raises `DatabaseUnavailableError`."""
        status: int | None = None
        retry_after: float | None = None
        body = self._body(attempt)
        try:
            answer = self._exchanges.post(
                attempt.url,
                {
                    "Content-Type": "application/cloudevents+json",
                    "User-Agent": "dnf-moderation",
                    **signed_headers(attempt.event_id, body, attempt.secrets),
                },
                body.encode(),
            )
        except (AddressRefusedError, ExchangeFailedError) as error:
            failure: str | None = error.reason
            detail = str(error)
        else:
            status, retry_after = answer.status, answer.retry_after_seconds
            failure = _failure(status)
            detail = f"status {status}"
        if failure is None:
            with self._database.transaction() as tx:
                deliveries.accepted(tx, attempt, status or 0)
            WEBHOOK_ATTEMPTS.labels("delivered").inc()
            log.info("webhook_delivered", **_named(attempt), status=status)
            return
        self._failed(attempt, failure, detail, status=status, retry_after=retry_after)

    def _failed(
        self, attempt: Attempt, failure: str, detail: str, *, status: int | None, retry_after: float | None
    ) -> None:
        wait = self._wait_seconds(attempt, failure, retry_after)
        pause = retry_after if status in _BUSY else None
        with self._database.transaction() as tx:
            reason = deliveries.failed(
                tx, attempt, failure, status=status, next_in_seconds=wait, pause_seconds=pause
            )
            if reason:
                deliveries.disable(tx, attempt.endpoint_id, reason, source=self._settings.source)
        WEBHOOK_ATTEMPTS.labels("given_up" if wait is None else "retried").inc()
        log.warning("webhook_refused", **_named(attempt), reason=failure, detail=detail, retry_seconds=wait)
        if reason:
            log.error("webhook_endpoint_disabled", endpoint=str(attempt.endpoint_id), reason=reason)
            self._keep_house()

    def _wait_seconds(self, attempt: Attempt, failure: str, retry_after: float | None) -> float | None:
        if failure == "gone" or attempt.number > len(self._retry_delays):
            return None
        delay = self._retry_delays[attempt.number - 1] * random.uniform(1 - _JITTER, 1 + _JITTER)
        return max(delay, retry_after or 0.0)

    def _body(self, attempt: Attempt) -> str:
        """Return the event, with the URL under which its receiver finds the thumbnail."""
        if attempt.type != "image.verdict.v1" or not self._settings.public_url:
            return attempt.event
        event = json.loads(attempt.event)
        check_id = event["data"]["check_id"]
        event["data"]["thumbnail"]["url"] = f"{self._settings.public_url}/v1/checks/{check_id}/thumbnail"
        return json.dumps(event, ensure_ascii=False, separators=(",", ":"))

    def _start_due(self) -> int:
        with self._lock:
            free = _THREADS - self._running.total()
            busy = [endpoint for endpoint, running in self._running.items() if running >= _FOR_EACH_ENDPOINT]
        if not free:
            return 0
        with self._database.transaction() as tx:
            due = deliveries.claim(tx, limit=free, for_each_endpoint=min(free, _FOR_EACH_ENDPOINT), busy=busy)
        for attempt in due:
            with self._lock:
                self._running[attempt.endpoint_id] += 1
            self._threads.submit(self._attempt_in_thread, attempt)
        return len(due)

    def _attempt_in_thread(self, attempt: Attempt) -> None:
        try:
            self.attempt(attempt)
        except DatabaseUnavailableError as error:
            # Its lease ends and it is made again: a receiver may get an event twice, under one id.
            log.warning("webhook_unreported", **_named(attempt), detail=str(error))
        except Exception:
            log.exception("webhook_failed", **_named(attempt))
        finally:
            with self._lock:
                self._running[attempt.endpoint_id] -= 1
                if not self._running[attempt.endpoint_id]:
                    del self._running[attempt.endpoint_id]

    def _keep_house(self) -> None:
        self._next_housekeeping = time.monotonic() + _HOUSEKEEPING_SECONDS
        with self._database.transaction() as tx:
            WEBHOOK_WAITING_SECONDS.set(deliveries.waiting_seconds(tx))
            for reason, count in endpoints.disabled(tx).items():
                WEBHOOK_ENDPOINTS_DISABLED.labels(reason).set(count)
        for _ in range(_FORGETTING_ROUNDS):
            with self._database.transaction() as tx:
                if not deliveries.forget(tx, older_than_seconds=self._settings.retention_seconds):
                    break


def _failure(status: int) -> str | None:
    """Return why a status is no acceptance, one word; None for one that is."""
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return None
    if status == HTTPStatus.GONE:
        return "gone"
    return "redirected" if status < HTTPStatus.BAD_REQUEST else "refused"


def _named(attempt: Attempt) -> dict[str, object]:
    return {
        "endpoint": str(attempt.endpoint_id),
        "event_id": attempt.event_id,
        "type": attempt.type,
        "attempt": attempt.number,
    }
