"""Stored objects become checks, once for each version or content."""

import threading
from collections.abc import Sequence
from typing import Any, Self
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from worker.client.errors import QueueFullError, QueueUnreachableError
from worker.contract.envelope import bounded_json
from worker.contract.messages import DEFAULT_QUEUE, ImageCheck, InvalidMessageError
from worker.settings import Settings
from worker.storage import Storage, StorageRejectedError
from worker.telemetry.logs import get_logger
from worker.web.notifications import NotificationError, StoredObject, check_of, stored_objects
from worker.web.submissions import CheckRequest, Submissions

log = get_logger(__name__)

_LONGEST_POLL_SECONDS, _MESSAGES = 20, 10
_PAUSE_SECONDS = 5.0


class Intake:
    """Enqueues checks of stored objects in the allowed buckets; safe for threads."""

    def __init__(self, settings: Settings, storage: Storage, submissions: Submissions) -> None:
        self._settings = settings
        self._storage = storage
        self._submissions = submissions

    def take(self, stored: Sequence[StoredObject]) -> list[str]:
        """Return the ids of the checks of these objects once the broker has them.

        Raises `QueueFullError` and `QueueUnreachableError`.
        """
        checks = {check.check_id: check for found in stored if (check := self._wanted(found))}
        requests = [CheckRequest(**check.model_dump()) for check in checks.values()]
        # An earlier version of this program may have submitted the same content in other words.
        while requests and (known := self._submissions.submit(requests, queue=DEFAULT_QUEUE)):
            del requests[known.index]
        return list(checks)

    def _wanted(self, stored: StoredObject) -> ImageCheck | None:
        check = check_of(stored, self._settings)
        if check is None:
            return None
        try:
            self._storage.refuse_unlisted(check)
        except StorageRejectedError:
            return None
        return check


class SqsIntake:
    """Takes notifications from an SQS queue while the `with` block runs.

    A message is deleted once the broker has its checks. One that is no notification stays, for the queue's
    own redrive policy.
    """

    def __init__(self, settings: Settings, intake: Intake) -> None:
        self._intake = intake
        self._url = str(settings.intake_sqs_url)
        parts = urlsplit(self._url)
        amazon = (parts.hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))
        self._sqs: Any = boto3.Session().client(
            "sqs",
            region_name=settings.s3_region,
            endpoint_url=None if amazon else f"{parts.scheme}://{parts.netloc}",
            config=Config(
                connect_timeout=settings.s3_timeout_seconds,
                read_timeout=_LONGEST_POLL_SECONDS + settings.s3_timeout_seconds,
                retries={"mode": "standard", "max_attempts": 2},
            ),
        )
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sqs", daemon=True)

    def turn(self) -> None:
        """Take what one long poll returns. Raises botocore's errors and what `Intake.take` raises."""
        reply = self._sqs.receive_message(
            QueueUrl=self._url, WaitTimeSeconds=_LONGEST_POLL_SECONDS, MaxNumberOfMessages=_MESSAGES
        )
        for message in reply.get("Messages", []):
            try:
                stored = stored_objects(_notification(message["Body"]))
            except (NotificationError, InvalidMessageError) as error:
                log.warning(
                    "notification_refused", message_id=message.get("MessageId"), detail=str(error)[:200]
                )
                continue
            self._intake.take(stored)
            self._sqs.delete_message(QueueUrl=self._url, ReceiptHandle=message["ReceiptHandle"])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # A long poll that runs is not waited for: what it returns is delivered again.
        self._ending.set()

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                self.turn()
            except (BotoCoreError, ClientError, QueueFullError, QueueUnreachableError) as error:
                log.warning("sqs_interrupted", detail=str(error)[:300])
                self._ending.wait(_PAUSE_SECONDS)
            except Exception:
                log.exception("sqs_failed")
                self._ending.wait(_PAUSE_SECONDS)


def _notification(body: str) -> Any:
    """Return what a message says, also where SNS forwards it."""
    document = bounded_json(body.encode())
    match document:
        case {"Type": "Notification", "Message": str() as message}:
            return bounded_json(message.encode())
    return document
