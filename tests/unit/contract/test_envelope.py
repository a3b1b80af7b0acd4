"""What Celery is let see of a queue's entries."""

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from kombu.utils.json import loads

from worker.broker.app import create_app
from worker.contract.envelope import MAX_ENTRY_BYTES, decode, encode
from worker.contract.messages import CHECK_IMAGE, ImageCheck, InvalidMessageError
from worker.settings import Settings

QUEUE = "image-checks"
CHECK = {"bucket": "uploads", "key": "a.jpg", "check_id": "c-1", "metadata": {"ü": [1, None, 2**70]}}


def _admitted(entry: bytes) -> dict[str, Any]:
    return decode(entry, QUEUE, longest_wait_seconds=60)


def _called(payload: dict[str, Any]) -> Any:
    return loads(base64.b64decode(payload["body"]))


def _with(path: str, value: Any) -> bytes:
    """Return a good entry with one field, at a path with dots, of another value."""
    entry = json.loads(encode([CHECK], {}, QUEUE))
    *parents, last = path.split(".")
    place = entry
    for parent in parents:
        place = place[parent]
    place[last] = value
    return json.dumps(entry).encode()


def _without(path: str) -> bytes:
    entry = json.loads(encode([CHECK], {}, QUEUE))
    *parents, last = path.split(".")
    place = entry
    for parent in parents:
        place = place[parent]
    del place[last]
    return json.dumps(entry).encode()


def _body(text: str) -> bytes:
    return _with("body", base64.b64encode(text.encode()).decode())


def test_what_celery_writes_is_admitted_with_its_arguments_retries_and_eta() -> None:
    """A producer's message and a worker's retry come through with everything that the worker uses."""
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
    payload = _admitted(json.dumps(envelope).encode())
    (argument,), kwargs, _ = _called(payload)
    assert ImageCheck.model_validate(argument) == check
    assert kwargs == {}
    assert payload["headers"]["retries"] == 3
    assert datetime.fromisoformat(payload["headers"]["eta"]) > datetime.now(UTC)
    assert payload["properties"]["delivery_tag"] == "tag-1"
    assert payload["properties"]["delivery_info"] == {"exchange": "", "routing_key": QUEUE}
    app.close()


def test_an_entry_made_here_is_admitted_as_it_was_made() -> None:
    """A message that is put back on its queue has the arguments that it had."""
    for args, kwargs in [([CHECK], {}), ([], {"a": 1}), ([CHECK, 2], {"more": "ü"})]:
        assert _called(_admitted(encode(args, kwargs, QUEUE)))[:2] == [args, kwargs]


def test_headers_of_others_are_left_behind() -> None:
    """Celery takes any header for an attribute of its own; tracing libraries add theirs."""
    payload = _admitted(_with("headers.get", "surprise"))
    assert payload["headers"].keys() == {"task", "id", "retries", "eta", "root_id", "parent_id"}


UNREADABLE: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "no text": lambda: b"\xff\xfe\x00",
    "no JSON": lambda: b"{]",
    "half of it": lambda: encode([CHECK], {}, QUEUE)[:-7],
    "an array": lambda: b"[1, 2]",
    "a string": lambda: b'"check"',
    "a number": lambda: b"7",
    "null": lambda: b"null",
    "an empty object": lambda: b"{}",
    "nested deep": lambda: b"[" * 100_000,
    "too long": lambda: b'"' + b"a" * MAX_ENTRY_BYTES + b'"',
    "a number of ten thousand digits": lambda: b"1" * 10_000,
    "an unknown type of kombu's": lambda: b'{"__type__": "pickle", "__value__": "x"}',
    "no headers": lambda: _without("headers"),
    "headers of null": lambda: _with("headers", None),
    "headers in an array": lambda: _with("headers", []),
    "no properties": lambda: _without("properties"),
    "no tag": lambda: _without("properties.delivery_tag"),
    "a tag that is a number": lambda: _with("properties.delivery_tag", 7),
    "a tag that is an array": lambda: _with("properties.delivery_tag", ["a"]),
    "no task": lambda: _without("headers.task"),
    "a task that is an array": lambda: _with("headers.task", ["check_image"]),
    "no id": lambda: _without("headers.id"),
    "an id that is null": lambda: _with("headers.id", None),
    "retries that are text": lambda: _with("headers.retries", "3"),
    "retries below zero": lambda: _with("headers.retries", -1),
    "more retries than there can be": lambda: _with("headers.retries", 10_001),
    "an eta that is no time": lambda: _with("headers.eta", "soon"),
    "an eta without a zone": lambda: _with("headers.eta", "2026-01-01T00:00:00"),
    "no body": lambda: _without("body"),
    "a body that is an object": lambda: _with("body", {}),
    "an unknown encoding of the body": lambda: _with("properties.body_encoding", "rot13"),
    "a body that is no base64": lambda: _with("body", "%%%"),
    "a body with signs between its base64": lambda: _with(
        "body", "%" + base64.b64encode(b"[[], {}, {}]").decode()
    ),
    "a body that is no JSON": lambda: _body("{]"),
    "a body that is no triple": lambda: _body("[[], {}]"),
    "a body with arguments of null": lambda: _body("[null, {}, {}]"),
    "a body with keywords in an array": lambda: _body("[[], [], {}]"),
    "a pickle": lambda: _with("content-type", "application/x-python-serialize"),
    "no content type": lambda: _without("content-type"),
    "another content encoding": lambda: _with("content-encoding", "binary"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_entry_that_is_no_celery_message_is_refused(name: str) -> None:
    """Whatever it is, it is refused with the reason and a detail, and raises nothing else."""
    with pytest.raises(InvalidMessageError) as refused:
        _admitted(UNREADABLE[name]())
    assert refused.value.reason == "unreadable_entry"
    assert str(refused.value).endswith(".")


def test_a_task_that_is_not_ours_is_refused_by_its_name() -> None:
    """The detail names the task."""
    with pytest.raises(InvalidMessageError, match=r"no task 'os\.system'") as refused:
        _admitted(_with("headers.task", "os.system"))
    assert refused.value.reason == "unknown_task"


@pytest.mark.parametrize(
    "entry",
    [
        _body('[[], {}, {"callbacks": [{"task": "other"}]}]'),
        _body('[[], {}, {"chord": {"task": "other"}}]'),
        _with("headers.eta", (datetime.now(UTC) + timedelta(hours=1)).isoformat()),
    ],
)
def test_a_call_that_would_be_lost_in_part_or_come_many_times_is_refused(entry: bytes) -> None:
    """Callbacks would never be called; a wait beyond the visibility timeout would multiply the message."""
    with pytest.raises(InvalidMessageError) as refused:
        _admitted(entry)
    assert refused.value.reason == "malformed_message"


def test_an_entry_is_read_up_to_the_limit_and_not_beyond() -> None:
    """A good entry is one as long as it may be; with a byte more it is not looked into."""
    shortest = len(_with("other", ""))
    assert _admitted(_with("other", "x" * (MAX_ENTRY_BYTES - shortest)))
    with pytest.raises(InvalidMessageError, match=f"the limit is {MAX_ENTRY_BYTES}") as refused:
        _admitted(_with("other", "x" * (MAX_ENTRY_BYTES - shortest + 1)))
    assert refused.value.reason == "unreadable_entry"
