"""What an entry of a queue must be before Celery sees it.

Celery and kombu end the whole worker at an entry that is no JSON object, at a header of a kind that they do
not expect, at a body that is no triple; other faults they log, and drop the message. Here every entry is
either rebuilt from the parts that are understood, or refused with a reason.
"""

import base64
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal
from uuid import uuid4

from kombu.utils.json import dumps, loads
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from worker.contract.messages import CHECK_IMAGE, InvalidMessageError, first_fault
from worker.telemetry.tracing import accepted

#: Bytes of an entry: the largest check that the contract allows takes a tenth of it.
MAX_ENTRY_BYTES = 256 << 10

_Name = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[\x21-\x7e]+$")]


class _Part(BaseModel):
    # Headers that are not known are left behind: Celery takes any header for an attribute of its own.
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class EntryHeaders(_Part):
    """What Celery wants to know of a call; any other header is left behind."""

    task: str = Field(description=f"`{CHECK_IMAGE}`; an entry for another task becomes a dead letter.")
    id: _Name = Field(description="Of this message, a UUID say; of no consequence for the check.")
    retries: int = Field(default=0, ge=0, le=10_000)
    eta: Annotated[AwareDatetime, Field(strict=False)] | None = Field(
        default=None, description="Not before; at most the visibility timeout ahead."
    )
    root_id: _Name | None = None
    parent_id: _Name | None = None
    traceparent: Annotated[str | None, BeforeValidator(accepted)] = Field(
        default=None, exclude_if=lambda value: value is None
    )


class EntryProperties(_Part):
    """What kombu wants to know of a message; priorities are queues here, so none is read."""

    delivery_tag: _Name = Field(description="Unique over all messages, a new UUID: it names it in `unacked`.")
    body_encoding: Literal["base64", "utf-8"] | None = Field(
        default=None, description="How `body` is written; base64 is what Celery writes."
    )


class Entry(_Part):
    """An entry of a queue, kombu's envelope around a Celery call: LPUSH it to the list named as the queue."""

    headers: EntryHeaders
    properties: EntryProperties
    body: str = Field(
        description="The call as JSON, `[[check], {}, {}]`: positional arguments, keyword arguments, and what"
        " Celery embeds, which must ask for nothing."
    )
    content_type: Literal["application/json"] = Field(alias="content-type")
    content_encoding: Literal["utf-8"] = Field(alias="content-encoding")


def admit(entry: bytes, queue: str, *, longest_wait_seconds: float) -> dict[str, Any]:
    """Return the message in an entry of a queue, rebuilt, as kombu's payload.

    `longest_wait_seconds` bounds how far ahead its `eta` may lie: a message that waits beyond the visibility
    timeout would be delivered again and again. Raises `InvalidMessageError`.
    """
    try:
        envelope = Entry.model_validate(_object(entry))
    except ValidationError as error:
        raise InvalidMessageError(
            "unreadable_entry", f"The entry is no Celery message: {first_fault(error)}."
        ) from error
    headers = envelope.headers
    if headers.task != CHECK_IMAGE:
        raise InvalidMessageError("unknown_task", f"There is no task {headers.task[:100]!r}.")
    if headers.eta and headers.eta - datetime.now(UTC) > timedelta(seconds=longest_wait_seconds):
        raise InvalidMessageError(
            "malformed_message", f"The check would wait for more than {longest_wait_seconds:.0f} seconds."
        )
    args, kwargs = _arguments(envelope)
    return _payload(
        args,
        kwargs,
        headers=headers.model_dump(mode="json"),
        tag=envelope.properties.delivery_tag,
        queue=queue,
    )


def entry_of(args: list[Any], kwargs: dict[str, Any], queue: str, *, traceparent: str | None = None) -> bytes:
    """Return a new entry for a queue that calls the task with these arguments, as Celery would write it."""
    identity = str(uuid4())
    headers = {"task": CHECK_IMAGE, "id": identity, "root_id": identity, "retries": 0}
    if traceparent:
        headers["traceparent"] = traceparent
    return _text(_payload(args, kwargs, headers=headers, tag=str(uuid4()), queue=queue)).encode()


def _object(entry: bytes) -> object:
    if len(entry) > MAX_ENTRY_BYTES:
        raise InvalidMessageError(
            "unreadable_entry", f"The entry has {len(entry)} bytes; the limit is {MAX_ENTRY_BYTES}."
        )
    try:
        # kombu's own reading, since it will read the entry again when it puts it back on its queue.
        return loads(entry)
    except Exception as error:  # its hooks for types raise whatever their constructors do
        raise InvalidMessageError("unreadable_entry", f"The entry is no JSON: {_short(error)}.") from error


def _arguments(envelope: Entry) -> tuple[list[Any], dict[str, Any]]:
    try:
        body = envelope.body
        if envelope.properties.body_encoding == "base64":
            body = base64.b64decode(body, validate=True).decode()
        args, kwargs, embedded = loads(body)
    except Exception as error:
        raise InvalidMessageError(
            "unreadable_entry", f"The body is not the JSON of a call: {_short(error)}."
        ) from error
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise InvalidMessageError("unreadable_entry", "The body is not the JSON of a call.")
    if isinstance(embedded, dict) and any(embedded.values()):
        # They would be lost without a word: a check answers on the stream of verdicts alone.
        raise InvalidMessageError("malformed_message", "A check takes no callbacks, chain or chord.")
    return args, kwargs


def _payload(
    args: list[Any], kwargs: dict[str, Any], *, headers: dict[str, Any], tag: str, queue: str
) -> dict[str, Any]:
    body = _text([args, kwargs, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])
    return {
        "body": base64.b64encode(body.encode()).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": headers,
        "properties": {
            "correlation_id": headers["id"],
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": tag,
        },
    }


def _text(value: object) -> str:
    return str(dumps(value))


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
