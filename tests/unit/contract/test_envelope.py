"""The envelope: which queue entries are decoded, and to what."""

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import reduce
from operator import getitem
from typing import Any

import pytest
from kombu.utils.json import loads

from worker.broker.app import create_app
from worker.contract.envelope import MAX_ENTRY_BYTES, decode, encode
from worker.contract.messages import CHECK_IMAGE, ImageCheck, InvalidMessageError
from worker.settings import Settings

QUEUE = "image-checks"
CHECK = {"bucket": "uploads", "key": "a.jpg", "check_id": "c-1", "metadata": {"ü": [1, None, 2**70]}}


def _decoded(entry: bytes) -> dict[str, Any]:
    return decode(entry, QUEUE, longest_wait_seconds=60)


def _called(payload: dict[str, Any]) -> Any:
    return loads(base64.b64decode(payload["body"]))


def _valid(path: str) -> tuple[Any, Any, str]:
    """Return a valid entry, the object in it that holds a dotted path, and the path's last key."""
    entry = json.loads(encode([CHECK], {}, QUEUE))
    *parents, key = path.split(".")
    return entry, reduce(getitem, parents, entry), key


def _with(path: str, value: Any) -> bytes:
    entry, parent, key = _valid(path)
    parent[key] = value
    return json.dumps(entry).encode()


def _without(path: str) -> bytes:
    entry, parent, key = _valid(path)
    del parent[key]
    return json.dumps(entry).encode()


def _body(text: str) -> bytes:
    return _with("body", base64.b64encode(text.encode()).decode())


def test_a_message_of_celery_keeps_its_arguments_retries_and_eta() -> None:
    """A producer's message and a worker's retry keep everything that the worker uses."""
    app = create_app(Settings())
    check = ImageCheck(bucket="uploads", key="a.jpg", metadata={"ü": [1, None, 2**70]})
    message = app.amqp.create_task_message(
        "id-1", CHECK_IMAGE, args=[check.model_dump(mode="json")], countdown=5, retries=3
    )
    envelope = {
        "body": base64.b64encode(json.dumps(message.body).encode()).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": message.headers,
        "properties": {**message.properties, "body_encoding": "base64", "delivery_tag": "tag-1"},
    }
    payload = _decoded(json.dumps(envelope).encode())
    (argument,), kwargs, _ = _called(payload)
    assert ImageCheck.model_validate(argument) == check
    assert kwargs == {}
    assert payload["headers"]["retries"] == 3
    assert datetime.fromisoformat(payload["headers"]["eta"]) > datetime.now(UTC)
    assert payload["properties"]["delivery_tag"] == "tag-1"
    assert payload["properties"]["delivery_info"] == {"exchange": "", "routing_key": QUEUE}
    app.close()


def test_decode_reverses_encode() -> None:
    """A redriven message has the arguments of the first one."""
    for args, kwargs in [([CHECK], {}), ([], {"a": 1}), ([CHECK, 2], {"more": "ü"})]:
        assert _called(_decoded(encode(args, kwargs, QUEUE)))[:2] == [args, kwargs]


def test_unknown_headers_are_dropped() -> None:
    """Celery takes any header for an attribute of its own; tracing libraries add some."""
    payload = _decoded(_with("headers.get", "surprise"))
    assert payload["headers"].keys() == {"task", "id", "retries", "eta", "root_id", "parent_id"}


UNREADABLE: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "not text": lambda: b"\xff\xfe\x00",
    "not JSON": lambda: b"{]",
    "truncated": lambda: encode([CHECK], {}, QUEUE)[:-7],
    "an array": lambda: b"[1, 2]",
    "a string": lambda: b'"check"',
    "a number": lambda: b"7",
    "null": lambda: b"null",
    "an empty object": lambda: b"{}",
    "nested deeply": lambda: b"[" * 100_000,
    "too long": lambda: b'"' + b"a" * MAX_ENTRY_BYTES + b'"',
    "a number of 10,000 digits": lambda: b"1" * 10_000,
    "an unknown type of kombu": lambda: b'{"__type__": "pickle", "__value__": "x"}',
    "no headers": lambda: _without("headers"),
    "null headers": lambda: _with("headers", None),
    "an array of headers": lambda: _with("headers", []),
    "no properties": lambda: _without("properties"),
    "no tag": lambda: _without("properties.delivery_tag"),
    "a tag that is a number": lambda: _with("properties.delivery_tag", 7),
    "a tag that is an array": lambda: _with("properties.delivery_tag", ["a"]),
    "no task": lambda: _without("headers.task"),
    "a task that is an array": lambda: _with("headers.task", ["check_image"]),
    "no id": lambda: _without("headers.id"),
    "an id that is null": lambda: _with("headers.id", None),
    "retries as text": lambda: _with("headers.retries", "3"),
    "negative retries": lambda: _with("headers.retries", -1),
    "too many retries": lambda: _with("headers.retries", 10_001),
    "an eta that is not a time": lambda: _with("headers.eta", "soon"),
    "an eta without a zone": lambda: _with("headers.eta", "2026-01-01T00:00:00"),
    "no body": lambda: _without("body"),
    "a body that is an object": lambda: _with("body", {}),
    "an unknown encoding of the body": lambda: _with("properties.body_encoding", "rot13"),
    "a body that is not base64": lambda: _with("body", "%%%"),
    "a body with other characters in its base64": lambda: _with(
        "body", "%" + base64.b64encode(b"[[], {}, {}]").decode()
    ),
    "a body that is not JSON": lambda: _body("{]"),
    "a body that is not a triple": lambda: _body("[[], {}]"),
    "a body with null arguments": lambda: _body("[null, {}, {}]"),
    "a body with an array of keywords": lambda: _body("[[], [], {}]"),
    "a pickle": lambda: _with("content-type", "application/x-python-serialize"),
    "no content type": lambda: _without("content-type"),
    "another content encoding": lambda: _with("content-encoding", "binary"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_entry_that_is_not_a_celery_message_is_refused(name: str) -> None:
    """Always with the same error, which has a reason and a detail."""
    with pytest.raises(InvalidMessageError) as refused:
        _decoded(UNREADABLE[name]())
    assert refused.value.reason == "unreadable_entry"
    assert str(refused.value).endswith(".")


def test_an_unknown_task_is_refused() -> None:
    """The detail names it."""
    with pytest.raises(InvalidMessageError, match=r"no task 'os\.system'") as refused:
        _decoded(_with("headers.task", "os.system"))
    assert refused.value.reason == "unknown_task"


@pytest.mark.parametrize(
    "entry",
    [
        _body('[[], {}, {"callbacks": [{"task": "other"}]}]'),
        _body('[[], {}, {"chord": {"task": "other"}}]'),
        _with("headers.eta", (datetime.now(UTC) + timedelta(hours=1)).isoformat()),
    ],
)
def test_callbacks_and_a_late_eta_are_refused(entry: bytes) -> None:
    """Callbacks would never run; after the visibility timeout a waiting message is delivered again."""
    with pytest.raises(InvalidMessageError) as refused:
        _decoded(entry)
    assert refused.value.reason == "malformed_message"


def test_an_entry_of_the_longest_length_is_decoded() -> None:
    """One with a byte more is refused without being parsed."""
    shortest = len(_with("other", ""))
    assert _decoded(_with("other", "x" * (MAX_ENTRY_BYTES - shortest)))
    with pytest.raises(InvalidMessageError, match=f"the limit is {MAX_ENTRY_BYTES}") as refused:
        _decoded(_with("other", "x" * (MAX_ENTRY_BYTES - shortest + 1)))
    assert refused.value.reason == "unreadable_entry"
