"""The envelope: Celery's message as an entry of a queue."""

import base64
import json
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.broker.app import create_app
from worker.contract.envelope import MAX_ENTRY_BYTES, decode, encode
from worker.contract.messages import CHECK_IMAGE, ImageCheck, InvalidMessageError
from worker.settings import Settings

QUEUE = "image-checks"
CHECK = {"bucket": "uploads", "key": "a.jpg", "check_id": "c-1", "metadata": {"ü": [1, None, 2**70]}}


def _decoded(entry: bytes) -> dict[str, Any]:
    return decode(entry, QUEUE, tag="tag-1", server_time=time.time(), longest_wait_seconds=60)


def _called(payload: dict[str, Any]) -> Any:
    """Return the check in a payload."""
    (text,), kwargs, _ = json.loads(base64.b64decode(payload["body"]))
    assert kwargs == {}
    return json.loads(text)


def _with(path: str, value: Any) -> bytes:
    """Return a good entry with one field, at a path with dots, of another value."""
    entry = json.loads(encode(CHECK, QUEUE))
    *parents, last = path.split(".")
    place = entry
    for parent in parents:
        place = place[parent]
    place[last] = value
    return json.dumps(entry).encode()


def _without(path: str) -> bytes:
    entry = json.loads(encode(CHECK, QUEUE))
    *parents, last = path.split(".")
    place = entry
    for parent in parents:
        place = place[parent]
    del place[last]
    return json.dumps(entry).encode()


def _body(text: str) -> bytes:
    return _with("body", base64.b64encode(text.encode()).decode())


def test_what_celery_writes_is_decoded_with_its_arguments_retries_and_eta() -> None:
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
    payload = _decoded(json.dumps(envelope).encode())
    assert ImageCheck.model_validate(_called(payload)) == check
    assert payload["headers"]["check_id"] == check.check_id
    assert payload["headers"]["retries"] == 3
    assert datetime.fromisoformat(payload["headers"]["eta"]) > datetime.now(UTC)
    assert payload["properties"]["delivery_tag"] == "tag-1"
    assert payload["properties"]["delivery_info"] == {"exchange": "", "routing_key": QUEUE}
    app.close()


def test_decode_reverses_encode() -> None:
    """The check in it is the one that was encoded; a retry of it carries the same check."""
    payload = _decoded(encode(CHECK, QUEUE))
    assert _called(payload) == CHECK
    again = _decoded(json.dumps(payload).encode())
    assert _called(again) == CHECK
    for name in ("id", "check_id"):
        assert again["headers"][name] == payload["headers"][name]


@pytest.mark.parametrize(
    "path",
    ["headers.retries", "headers.eta", "headers.compression", "headers.traceparent", "properties.priority"],
)
def test_null_means_absent(path: str) -> None:
    """Producers in other languages write every header that they know; Celery reads null as its default."""
    payload = _decoded(_with(path, None))
    assert _called(payload) == CHECK
    assert payload["headers"]["retries"] == 0
    assert payload["headers"]["eta"] is None


def test_a_tag_that_a_producer_gives_is_not_used() -> None:
    """Several messages may have it; the transport names each of them itself."""
    payload = _decoded(_with("properties.delivery_tag", "mine"))
    assert payload["properties"]["delivery_tag"] == "tag-1"
    assert _decoded(_without("properties.delivery_tag"))
    assert _decoded(_with("properties.delivery_info", None))
    assert _decoded(_with("properties.priority", 9))["properties"]["priority"] == 0


def test_a_compressed_body_is_decoded_within_its_limits() -> None:
    """Celery's `compression='gzip'` is zlib; what it unpacks to is bounded like an entry."""
    entry = json.loads(encode(CHECK, QUEUE))
    entry["headers"]["compression"] = "application/x-gzip"
    entry["body"] = base64.b64encode(zlib.compress(base64.b64decode(entry["body"]))).decode()
    assert _called(_decoded(json.dumps(entry).encode())) == CHECK
    entry["body"] = base64.b64encode(zlib.compress(b"[" + b" " * (16 << 20) + b"]")).decode()
    with pytest.raises(InvalidMessageError):
        _decoded(json.dumps(entry).encode())


def test_an_eta_counts_by_the_brokers_clock() -> None:
    """A worker whose clock is an hour behind or ahead waits as long as any other."""
    for skew in (-3600.0, 0.0, 3600.0):
        server = time.time() + skew
        eta = datetime.fromtimestamp(server + 30, UTC).isoformat()
        payload = decode(
            _with("headers.eta", eta), QUEUE, tag="t", server_time=server, longest_wait_seconds=60
        )
        remaining = datetime.fromisoformat(payload["headers"]["eta"]).timestamp() - time.time()
        assert 25 < remaining <= 30
        assert payload["headers"]["clock_offset"] == pytest.approx(skew, abs=5)


def test_an_eta_of_the_first_year_is_now() -> None:
    """Celery's own arithmetic would overflow, and the message be dropped."""
    payload = _decoded(_with("headers.eta", "0001-01-01T00:00:00+14:00"))
    assert datetime.fromisoformat(payload["headers"]["eta"]).timestamp() == pytest.approx(time.time(), abs=9)


@pytest.mark.parametrize(
    "entry",
    [
        _with("headers.eta", "9999-12-31T23:59:59-14:00"),
        _with("headers.retries", -1),
        _with("headers.task", "other"),
        _body(json.dumps([[], {"check": CHECK}, {}])),
        _body(json.dumps([[], CHECK, {}])),
        _body(json.dumps([[CHECK, 2], {}, {}])),
        _body(json.dumps([[CHECK], {}, {"chord": {"task": "other"}}])),
    ],
)
def test_an_entry_that_is_refused_keeps_a_check_id_that_can_be_read(entry: bytes) -> None:
    """Whoever waits for the check hears of its dead letter."""
    with pytest.raises(InvalidMessageError) as refused:
        _decoded(entry)
    assert refused.value.check_id == "c-1"


def test_a_check_id_that_is_a_number_is_read_too() -> None:
    """As text."""
    with pytest.raises(InvalidMessageError) as refused:
        _decoded(_body(json.dumps([[{"check_id": 4711}, 2], {}, {}])))
    assert refused.value.check_id == "4711"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


@given(check=JSON, path=st.sampled_from(["headers.eta", "headers.id", "properties", "body", "x"]), value=JSON)
def test_whatever_an_entry_holds_it_is_decoded_or_refused(check: Any, path: str, value: Any) -> None:
    """Nothing else is raised, and what is decoded can be encoded again by any JSON encoder."""
    entry = json.loads(encode({"check_id": "c", "metadata": check}, QUEUE))
    *parents, last = path.split(".")
    place = entry
    for parent in parents:
        place = place[parent]
    place[last] = value
    with suppress(InvalidMessageError):
        json.dumps(_decoded(json.dumps(entry).encode()), allow_nan=False).encode()


@pytest.mark.parametrize("depth", [10, 41, 500, 965, 990, 5000, 60_000])
@pytest.mark.parametrize("brackets", [("[", "]"), ('{"a":', "}")])
def test_a_body_of_any_depth_is_decoded_or_refused(depth: int, brackets: tuple[str, str]) -> None:
    """Python reads deeper JSON than it writes: the depth is bounded before anything is read."""
    opening, closing = brackets
    nested = opening * depth + "1" + closing * depth
    entry = _body('[[{"check_id": "c-1", "metadata": {"x": ' + nested + "}}], {}, {}]")
    if depth == 10:
        assert _decoded(entry)
    else:
        with pytest.raises(InvalidMessageError, match=r"nested more than|has .* bytes"):
            _decoded(entry)


def test_unknown_headers_are_dropped() -> None:
    """Celery takes any header for an attribute of its own; tracing libraries add theirs."""
    payload = _decoded(_with("headers.get", "surprise"))
    assert payload["headers"].keys() == {
        "task",
        "id",
        "retries",
        "eta",
        "root_id",
        "parent_id",
        "check_id",
        "clock_offset",
    }


UNREADABLE: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "not text": lambda: b"\xff\xfe\x00",
    "not JSON": lambda: b"{]",
    "truncated": lambda: encode(CHECK, QUEUE)[:-7],
    "an array": lambda: b"[1, 2]",
    "a string": lambda: b'"check"',
    "a number": lambda: b"7",
    "null": lambda: b"null",
    "an empty object": lambda: b"{}",
    "nested deeply": lambda: b"[" * 100_000,
    "too long": lambda: b'"' + b"a" * MAX_ENTRY_BYTES + b'"',
    "a number of ten thousand digits": lambda: b"1" * 10_000,
    "an unknown type of kombu": lambda: b'{"__type__": "pickle", "__value__": "x"}',
    "no headers": lambda: _without("headers"),
    "null headers": lambda: _with("headers", None),
    "an array of headers": lambda: _with("headers", []),
    "no properties": lambda: _without("properties"),
    "no task": lambda: _without("headers.task"),
    "a task that is an array": lambda: _with("headers.task", ["check_image"]),
    "no id": lambda: _without("headers.id"),
    "an id that is null": lambda: _with("headers.id", None),
    "retries that are text": lambda: _with("headers.retries", "3"),
    "retries below zero": lambda: _with("headers.retries", -1),
    "more retries than there can be": lambda: _with("headers.retries", 10_001),
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
    "a pickle": lambda: _with("content-type", "application/x-python-serialize"),
    "no content type": lambda: _without("content-type"),
    "another content encoding": lambda: _with("content-encoding", "binary"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_entry_that_is_no_celery_message_is_refused(name: str) -> None:
    """Whatever it is, it is refused with the reason and a detail, and raises nothing else."""
    with pytest.raises(InvalidMessageError) as refused:
        _decoded(UNREADABLE[name]())
    assert refused.value.reason == "unreadable_entry"
    assert str(refused.value).endswith(".")


def test_a_task_that_is_not_ours_is_refused_by_its_name() -> None:
    """The detail names the task."""
    with pytest.raises(InvalidMessageError, match=r"no task 'os\.system'") as refused:
        _decoded(_with("headers.task", "os.system"))
    assert refused.value.reason == "unknown_task"


@pytest.mark.parametrize(
    "entry",
    [
        _body('[[{}], {}, {"callbacks": [{"task": "other"}]}]'),
        _body('[[{}], {}, {"chord": {"task": "other"}}]'),
        _body("[[{}], {}]"),
        _body("[null, {}, {}]"),
        _body("[[{}], [], {}]"),
        _body("[[1], {}, {}]"),
        _with("headers.eta", (datetime.now(UTC) + timedelta(hours=1)).isoformat()),
    ],
)
def test_a_call_that_would_be_lost_in_part_or_come_many_times_is_refused(entry: bytes) -> None:
    """Callbacks would never be called; a wait beyond the visibility timeout would multiply the message."""
    with pytest.raises(InvalidMessageError) as refused:
        _decoded(entry)
    assert refused.value.reason == "malformed_message"


def test_an_entry_is_read_up_to_the_limit_and_not_beyond() -> None:
    """A good entry is one as long as it may be; with a byte more it is not looked into."""
    shortest = len(_with("other", ""))
    assert _decoded(_with("other", "x" * (MAX_ENTRY_BYTES - shortest)))
    with pytest.raises(InvalidMessageError, match=f"the limit is {MAX_ENTRY_BYTES}") as refused:
        _decoded(_with("other", "x" * (MAX_ENTRY_BYTES - shortest + 1)))
    assert refused.value.reason == "unreadable_entry"
