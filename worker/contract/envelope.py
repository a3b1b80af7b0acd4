"""Celery's message as an entry of a queue: encoded for producers, decoded and checked before Celery sees it.

Celery and kombu end the worker at an entry that is not a JSON object, at a header of an unexpected type, and
at a body that is not a triple; they log other faults and drop the message. `decode` bounds an entry's size,
depth and scalars before anything else reads it, and rebuilds it from the parts that are known. The check
travels on as one text, so that neither Celery nor kombu decodes it a second time.
"""

import base64
import json
import re
import time
import zlib
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NoReturn
from uuid import uuid4

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from worker.contract.messages import CHECK_IMAGE, InvalidMessageError, check_id_in, first_fault

#: Bytes of an entry: the largest check that the contract allows takes a tenth of it.
MAX_ENTRY_BYTES = 256 << 10
#: Levels of arrays and objects in an entry or its body: the contract allows half of them.
MAX_DEPTH = 40

_STRINGS_AND_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{\]}]', re.DOTALL)

_Name = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[\x21-\x7e]+$")]

# W3C Trace Context, version 00, with neither id all zeros.
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def _accepted_traceparent(header: object) -> str | None:
    """Return a `traceparent`; None for any other value, since a bad one refuses no message."""
    return header if isinstance(header, str) and _TRACEPARENT.fullmatch(header) else None


class _Part(BaseModel):
    # Celery would set any header as an attribute of its request, so unknown ones are dropped.
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: object) -> object:
        """Drop nulls, as Celery itself reads them: producers in other languages write them for defaults."""
        if not isinstance(value, dict):
            return value
        return {name: item for name, item in value.items() if item is not None}


class EntryHeaders(_Part):
    """The headers of a Celery call; others are dropped."""

    task: str = Field(description=f"`{CHECK_IMAGE}`; an entry for another task becomes a dead letter.")
    id: _Name = Field(description="Of this message, for example a UUID; the check does not depend on it.")
    retries: int = Field(default=0, ge=0, le=10_000)
    eta: Annotated[AwareDatetime, Field(strict=False)] | None = Field(
        default=None, description="Not before; at most the visibility timeout ahead."
    )
    compression: Literal["application/x-gzip"] | None = Field(
        default=None, description="Of the body, as Celery's `compression='gzip'` writes it."
    )
    root_id: _Name | None = None
    parent_id: _Name | None = None
    traceparent: Annotated[str | None, BeforeValidator(_accepted_traceparent)] = Field(
        default=None, exclude_if=lambda value: value is None
    )


class EntryProperties(_Part):
    """The properties of a kombu message; a priority or a delivery tag is dropped, since both are ours."""

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


def decode(
    entry: bytes,
    queue: str,
    *,
    tag: str,
    server_time: float,
    longest_wait_seconds: float,
    length: int | None = None,
) -> dict[str, Any]:
    """Return kombu's payload of an entry, rebuilt from its known parts.

    `tag` names the message from now on; `server_time` is the broker's, in seconds since 1970; `length` is the
    whole entry's in bytes, where `entry` is a part of it. `longest_wait_seconds` bounds its `eta`: a message
    that waits beyond the visibility timeout would be delivered again and again. Raises `InvalidMessageError`,
    which carries the check id wherever one can be read.
    """
    check_id: str | None = None
    try:
        _refuse_oversized(length or len(entry))
        document = bounded_json(entry)
        call = _call(document)
        check_id = _readable_check_id(call)
        headers = _headers(document)
        check = _check(call)
        return _payload(
            json.dumps(check),
            headers={
                **headers.model_dump(mode="json", exclude={"eta", "compression"}),
                "eta": _local_eta(headers.eta, server_time, longest_wait_seconds),
                "check_id": check_id,
                "clock_offset": server_time - time.time(),
            },
            tag=tag,
            queue=queue,
        )
    except InvalidMessageError as error:
        error.check_id = check_id
        raise
    except Exception as error:  # whatever an entry provokes is a fault of the entry
        raise InvalidMessageError(
            "unreadable_entry", f"The entry cannot be decoded: {_short(error)}.", check_id
        ) from error


def encode(check: object, queue: str, *, traceparent: str | None = None) -> bytes:
    """Return an entry that asks for a check, as Celery would write the call of the task with it."""
    identity = str(uuid4())
    headers = {"task": CHECK_IMAGE, "id": identity, "root_id": identity, "retries": 0}
    if traceparent:
        headers["traceparent"] = traceparent
    return json.dumps(_payload(check, headers=headers, tag=str(uuid4()), queue=queue)).encode()


def _refuse_oversized(length: int) -> None:
    if length > MAX_ENTRY_BYTES:
        raise InvalidMessageError(
            "unreadable_entry", f"The entry has {length} bytes; the limit is {MAX_ENTRY_BYTES}."
        )


def bounded_json(data: bytes) -> Any:
    """Return what JSON of a bounded depth says; its numbers are finite. Raises `InvalidMessageError`."""
    depth = 0
    # Text with fewer brackets than the limit cannot be too deep.
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH:
        for match in _STRINGS_AND_BRACKETS.finditer(data):
            depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(match[0], 0)
            if depth > MAX_DEPTH:
                raise InvalidMessageError(
                    "unreadable_entry", f"The entry is nested more than {MAX_DEPTH} levels deep."
                )
    try:
        return json.loads(data, parse_constant=_refuse_constant, parse_float=_finite)
    except ValueError as error:
        raise InvalidMessageError("unreadable_entry", f"The entry is not JSON: {_short(error)}.") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if number in {float("inf"), float("-inf")}:
        raise ValueError(f"{text[:20]} is too large")
    return number


def _call(document: Any) -> Any:
    """Return the decoded body of an entry, as far as its headers say how to. Raises `InvalidMessageError`."""
    try:
        body = document["body"]
        properties, headers = document.get("properties"), document.get("headers")
        if isinstance(properties, dict) and properties.get("body_encoding") == "base64":
            data = base64.b64decode(body, validate=True)
        else:
            data = str(body).encode()
        if isinstance(headers, dict) and headers.get("compression") == "application/x-gzip":
            # 32: a header of zlib or of gzip.
            data = zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(data, MAX_ENTRY_BYTES)
    except (TypeError, KeyError, AttributeError, ValueError, zlib.error) as error:
        raise InvalidMessageError(
            "unreadable_entry", f"The entry is not a Celery message: {_short(error)}."
        ) from error
    return bounded_json(data)


def _readable_check_id(call: Any) -> str | None:
    """Return the first check id in a call's positional or keyword arguments."""
    if not isinstance(call, list):
        return None
    arguments: list[object] = []
    for part in call[:2]:
        if isinstance(part, list):
            arguments += [_retried(argument) for argument in part]
        elif isinstance(part, dict):
            arguments += [part, *part.values()]
    return next((check_id for argument in arguments if (check_id := check_id_in(argument))), None)


def _headers(document: Any) -> EntryHeaders:
    try:
        headers = Entry.model_validate(document).headers
    except ValidationError as error:
        raise InvalidMessageError(
            "unreadable_entry", f"The entry is not a Celery message: {first_fault(error)}."
        ) from error
    if headers.task != CHECK_IMAGE:
        raise InvalidMessageError("unknown_task", f"There is no task {headers.task[:100]!r}.")
    return headers


def _check(call: Any) -> dict[str, Any]:
    match call:
        case [[dict() as check], {**keywords}, embedded] if not keywords:
            if isinstance(embedded, dict) and any(embedded.values()):
                # Celery would call them, but the check's outcome is on the verdict stream only.
                raise InvalidMessageError("malformed_message", "A check takes no callbacks, chain or chord.")
            return check
        case [[str() as text], {**keywords}, _] if not keywords:
            if isinstance(retried := _retried(text), dict):
                return retried
    raise InvalidMessageError("malformed_message", "The task takes one positional argument, the check.")


def _retried(argument: object) -> object:
    """Return the check in a retry's argument, the text that an earlier `decode` wrote; others as they are."""
    if isinstance(argument, str) and argument.startswith("{"):
        with suppress(InvalidMessageError):
            return bounded_json(argument.encode("utf-8", "surrogatepass"))
    return argument


def _local_eta(eta: datetime | None, server_time: float, longest_wait_seconds: float) -> str | None:
    """Return the `eta` by this machine's clock: Celery waits by it, and it may differ from the broker's."""
    if eta is None:
        return None
    try:
        remaining = eta.timestamp() - server_time
    except OverflowError:
        remaining = float("-inf") if eta.year < datetime.now(UTC).year else float("inf")
    if not abs(remaining) < float("inf"):
        raise InvalidMessageError("malformed_message", "The check's `eta` is out of range.")
    if remaining > longest_wait_seconds:
        raise InvalidMessageError(
            "malformed_message", f"The check would wait for more than {longest_wait_seconds:.0f} seconds."
        )
    return datetime.fromtimestamp(time.time() + max(0.0, remaining), UTC).isoformat()


def _payload(argument: object, *, headers: dict[str, Any], tag: str, queue: str) -> dict[str, Any]:
    embedded = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    return {
        "body": base64.b64encode(json.dumps([[argument], {}, embedded]).encode()).decode(),
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


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
