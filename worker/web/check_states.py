"""What has become of a check: queued, retried, answered, or given up."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import redis
from pydantic import BaseModel, Field

from worker.broker import keys
from worker.broker.dead_letters import DeadLetters
from worker.broker.verdict_stream import Event, VerdictStream
from worker.checks.attempts import RETRY_FIELDS
from worker.client.awaited import retries_in
from worker.client.errors import unreachable
from worker.contract.messages import DeadLetter, DecisionEvent, RejectionEvent, VerdictEvent, read_event
from worker.database.database import Database
from worker.database.errors import DatabaseUnavailableError
from worker.reviews.published import event_text, latest_decision
from worker.settings import Settings

# For finding out why the broker does not answer.
_DIAGNOSIS_SECONDS = 2.0

State = Literal["queued", "retrying", "answered", "dead_lettered"]


class LastRetry(BaseModel):
    """Why a check was last retried."""

    reason: str
    detail: str = Field(description="The reason in words, for people.")


class CheckState(BaseModel):
    """A check as the API shows it."""

    check_id: str
    state: State = Field(
        description="`queued`: no worker has answered yet; `retrying`: an attempt failed, another follows;"
        " `answered`: there is an event; `dead_lettered`: there will be none until an operator redrives it."
    )
    event: Annotated[VerdictEvent | RejectionEvent, Field(discriminator="type")] | None = Field(
        default=None, description="As published: the verdict, or the rejection of the upload."
    )
    decision: DecisionEvent | None = Field(
        default=None,
        description="The newest, null if people have not decided; absent while the database does not answer.",
    )
    retry: LastRetry | None = None
    dead_letter: DeadLetter | None = None


class CheckStates:
    """Looks checks up on the broker, and in the database what the broker has forgotten; safe for threads."""

    def __init__(self, settings: Settings, client: redis.Redis, database: Database) -> None:
        self._redis = client
        self._stream = VerdictStream.connect(settings, client=client)
        self._dead_letters = DeadLetters.connect(settings, client=client)
        self._database = database
        self._settings = settings.review
        self._broker = settings.broker

    def event(self, check_id: str) -> Event | None:
        """Return a check's event, without an entry id; None while it has none.

        Raises `QueueUnreachableError` and `DatabaseUnavailableError`.
        """
        with self._reached():
            found = self._stream.event_of(check_id)
        if found:
            return found
        with self._database.transaction() as tx:
            raw = event_text(tx, check_id)
        return Event("", read_event(raw), raw) if raw else None

    def state(self, check_id: str) -> dict[str, Any] | None:
        """Return a `CheckState` as JSON, its event as published; None for a check that is not known.

        A check that came over the queue is known once a worker has begun it. Raises `QueueUnreachableError`
        and `DatabaseUnavailableError`.
        """
        with self._reached():
            event = self._stream.event_of(check_id)
            if event is None and (open_state := self._dead_lettered(check_id) or self._waiting(check_id)):
                return open_state
        raw = event.raw if event else None
        known: dict[str, Any] = {}
        try:
            with self._database.transaction() as tx:
                raw = raw or event_text(tx, check_id)
                decision = latest_decision(tx, self._settings, check_id) if raw else None
            known["decision"] = decision and decision.model_dump(mode="json")
        except DatabaseUnavailableError:
            # The verdict needs no database; whether people decided is then not said.
            if raw is None:
                raise
        if raw is None:
            return None
        return {"check_id": check_id, "state": "answered", "event": json.loads(raw), **known}

    def _dead_lettered(self, check_id: str) -> dict[str, Any] | None:
        stored = self._dead_letters.of_check(check_id)
        if stored is None or stored.dead_letter is None:
            return None
        dead_letter = stored.dead_letter.model_dump(mode="json")
        return {"check_id": check_id, "state": "dead_lettered", "dead_letter": dead_letter}

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except redis.RedisError as error:
            raise unreachable(error, self._broker, seconds=_DIAGNOSIS_SECONDS) from error

    def _waiting(self, check_id: str) -> dict[str, Any] | None:
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.exists(keys.submitted(check_id), keys.attempts(check_id))
        pipeline.hmget(keys.attempts(check_id), RETRY_FIELDS)
        known, fields = pipeline.execute()
        if not known:
            return None
        retry = retries_in([check_id], [fields]).get(check_id)
        if retry is None:
            return {"check_id": check_id, "state": "queued"}
        reason = {"reason": retry.reason, "detail": retry.detail}
        return {"check_id": check_id, "state": "retrying", "retry": reason}
