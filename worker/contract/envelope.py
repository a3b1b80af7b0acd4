"""Celery's message as an entry of a queue: encoded for producers, decoded and checked before Celery sees it.

Celery and kombu end the worker at an entry that is not a JSON object, at a header of an unexpected type, and
at a body that is not a triple; they log other faults and drop the message. `decode` rebuilds every entry from
the parts that are known, or raises the reason for its dead letter.
"""

import base64
import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal
from uuid import uuid4

from kombu.utils.json import dumps, loads
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from worker.contract.messages import CHECK_IMAGE, InvalidMessageError, first_fault

#: Bytes of an entry: the largest check that the contract allows takes a tenth of it.
MAX_ENTRY_BYTES = 256 << 10

_Name = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[\x21-\x7e]+$")]

# W3C Trace Context, version 00, with neither id all zeros.
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def _accepted_traceparent(header: object) -> str | None:
    """Return a `traceparent`; None for any other value, since a bad one refuses no message."""
    return header if isinstance(header, str) and _TRACEPARENT.fullmatch(header) else None


class _Part(BaseModel):
    # Celery would set any header as an attribute of its request, so unknown ones are dropped.
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class EntryHeaders(_Part):
    """The headers of a Celery call; others are dropped."""

    task: str = Field(description=f"`{CHECK_IMAGE}`; an entry for another task becomes a dead letter.")
    id: _Name = Field(description="Of this message, for example a UUID; the check does not depend on it.")
    retries: int = Field(default=0, ge=0, le=10_000)
    eta: Annotated[AwareDatetime, Field(strict=False)] | None = Field(
        default=None, description="Not before; at most the visibility timeout ahead."
    )
    root_id: _Name | None = None
    parent_id: _Name | None = None
    traceparent: Annotated[str | None, BeforeValidator(_accepted_traceparent)] = Field(
        default=None, exclude_if=lambda value: value is None
    )


class EntryProperties(_Part):
    """The properties of a kombu message; a priority is dropped, since queues are the priorities."""

    delivery_tag: _Name = Field(
        description="Unique over all messages, for example a new UUID: its name in `unacked`."
    )
    body_encoding: Literal["base64", "utf-8"] | None = Field(
        default=None, description="How `body` is encoded; Celery uses base64."
    )


class Entry(_Part):
    """An entry of a queue, kombu's envelope around a Celery call: LPUSH it to the list named as the queue."""

    headers: EntryHeaders
    properties: EntryProperties
    body: str = Field(
        description="The call as JSON, `[[check], {}, {}]`: positional arguments, keyword arguments, and"
        " Celery's embedded callbacks, which must be empty."
    )
    content_type: Literal["application/json"] = Field(alias="content-type")
    content_encoding: Literal["utf-8"] = Field(alias="content-encoding")


def decode(entry: bytes, queue: str, *, longest_wait_seconds: float) -> dict[str, Any]:
    """Return kombu's payload of an entry, rebuilt from its known parts.

    `longest_wait_seconds` bounds its `eta`: a message that waits beyond the visibility timeout would be
    delivered again and again. Raises `InvalidMessageError`.
    """
    try:
        envelope = Entry.model_validate(_object(entry))
    except ValidationError as error:
        raise InvalidMessageError(
            "unreadable_entry", f"The entry is not a Celery message: {first_fault(error)}."
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


def encode(args: list[Any], kwargs: dict[str, Any], queue: str, *, traceparent: str | None = None) -> bytes:
    """Return an entry that calls the task with these arguments, as Celery would write it."""
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
        return loads(entry)
    except Exception as error:  # kombu's hooks for types raise whatever their constructors do
        raise InvalidMessageError("unreadable_entry", f"The entry is not JSON: {_short(error)}.") from error


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
        # Celery would call them, but the check's outcome is on the verdict stream only.
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
