"""The messages of the contract, and their schemas."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from deploy.generators.schemas import MESSAGES, examples, message_schema
from worker.contract.messages import (
    MAX_METADATA_BYTES,
    MAX_VIEWS,
    ImageCheck,
    Rejection,
    RejectionEvent,
    UnknownEventTypeError,
    Verdict,
    VerdictEvent,
    event_id,
    read_dead_letter,
    read_event,
)


@pytest.mark.parametrize("name", MESSAGES)
def test_each_schema_is_valid_and_refuses_unknown_fields(name: str) -> None:
    """By draft 2020-12 of JSON Schema."""
    schema = message_schema(name)
    Draft202012Validator.check_schema(schema)
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize(
    ("name", "event_type"),
    [("image-verdict-v1", "image.verdict.v1"), ("image-rejected-v1", "image.rejected.v1")],
)
def test_every_event_is_a_cloud_event_of_its_own_type(name: str, event_type: str) -> None:
    """The schema has every attribute of the envelope, and constants for version and type."""
    schema = message_schema(name)
    assert set(schema["properties"]) >= {"id", "source", "specversion", "type", "subject", "time", "data"}
    assert schema["properties"]["specversion"]["const"] == "1.0"
    assert schema["properties"]["type"]["const"] == event_type


def test_a_check_needs_only_bucket_and_key() -> None:
    """Id, time of submission and policy have defaults; ids are unique."""
    first, second = (ImageCheck(bucket="uploads", key="a.jpg") for _ in range(2))
    assert first.check_id != second.check_id
    assert first.policy == "default"
    assert abs((datetime.now(UTC) - first.submitted_at).total_seconds()) < 60
    assert first.uri == "s3://uploads/a.jpg"


@pytest.mark.parametrize(
    "fields",
    [
        {"check_id": ""},
        {"check_id": "a" * 129},
        {"check_id": "with space"},
        {"check_id": "line\n"},
        {"bucket": ""},
        {"key": ""},
        {"sha256": "abc"},
        {"sha256": "A" * 64},
        {"metadata": []},
        {"metadata": {"ratio": float("nan")}},
        {"metadata": {"half": "\ud800"}},
        {"submitted_at": "yesterday"},
        {"policy": "Not A Name"},
        {"surprise": 1},
    ],
)
def test_a_malformed_check_is_refused(fields: dict[str, object]) -> None:
    """Each of these fields is invalid or unknown."""
    with pytest.raises(ValidationError):
        ImageCheck.model_validate({"bucket": "uploads", "key": "a.jpg", **fields})


def test_metadata_may_have_four_kibibytes() -> None:
    """As compact JSON in UTF-8, in which a Cyrillic letter has two bytes; a byte more is refused."""
    frame = len('{"k":""}')
    largest = {"k": "я" * ((MAX_METADATA_BYTES - frame) // 2)}
    assert ImageCheck(bucket="uploads", key="a", metadata=largest).metadata == largest
    with pytest.raises(ValidationError):
        ImageCheck(bucket="uploads", key="a", metadata={"k": largest["k"] + "x"})


def test_metadata_is_unchanged_by_json() -> None:
    """Nesting, null, large integers, fractions and any script."""
    metadata = {"n": None, "deep": [{"a": [1, 2**70, 0.1]}], "text": 'Grüße, 世界 "quoted"', "t": True}
    check = ImageCheck(bucket="uploads", key="a", metadata=metadata)
    assert ImageCheck.model_validate_json(check.model_dump_json()).metadata == metadata


def test_the_id_of_an_event_depends_on_check_model_and_policy_only() -> None:
    """Equal ones give the same id; a change of any of them gives another."""
    digest = "0" * 64
    known = event_id("check-1", digest, "default")
    # printf 'check-1\n%s\ndefault' 000...0 | sha256sum
    assert known == "a8385c7bdbf922015ee8fc1a92e0c6521bb574247a5ab67c57619b9a3a8e000d"
    assert known == event_id("check-1", digest, "default")
    assert len({known, event_id("check-2", digest, "default"), event_id("check-1", "1" * 64, "default")}) == 3
    assert known != event_id("check-1", digest, "strict")


def test_messages_are_immutable() -> None:
    """An assignment raises an error."""
    check = ImageCheck(bucket="uploads", key="a")
    with pytest.raises(ValidationError):
        check.key = "b"


def _later_rejection(**changes: object) -> dict[str, Any]:
    """Return an event as a later version may write it: with fields, a stage and a reason of its own."""
    event = {
        "specversion": "1.0",
        "type": "image.rejected.v1",
        "id": "1",
        "source": "later",
        "subject": "s3://uploads/a.jpg",
        "time": "2026-11-28T00:00:00Z",
        "datacontenttype": "application/json",
        "severity": 3,
        "data": {
            "check_id": "c-1",
            "policy": "default",
            "durations_ms": {"total": 1.0, "virus_scan": 2.0},
            "attempt": 1,
            "worker": "w",
            "metadata": {"own": {"kept": True}},
            "reason": "infected",
            "detail": "It has a virus.",
            "scanner": {"name": "s"},
        },
    }
    return {**event, **changes}


def test_a_reader_ignores_what_a_later_version_added() -> None:
    """Fields at any depth; a reason and a stage are kept as text, metadata as it is."""
    event = read_event(json.dumps(_later_rejection()))
    assert isinstance(event.data, Rejection)
    assert event.data.reason == "infected"
    assert event.data.durations_ms == {"total": 1.0, "virus_scan": 2.0}
    assert event.data.metadata == {"own": {"kept": True}}
    letter = read_dead_letter(
        json.dumps({"message": "", "reason": "later", "detail": "d", "attempts": 1, "more": 1})
    )
    assert (letter.reason, letter.detail) == ("later", "d")


def test_views_are_optional_and_bounded() -> None:
    """Events of earlier workers have none and keep to the schema; more than any bundle cuts are refused."""
    event = examples()["image-verdict-v1"]
    validator = Draft202012Validator(message_schema("image-verdict-v1"))
    validator.validate(event)
    earlier = event | {"data": {name: value for name, value in event["data"].items() if "view" not in name}}
    validator.validate(earlier)
    read = read_event(json.dumps(earlier))
    assert isinstance(read.data, Verdict)
    assert (read.data.views, read.data.strongest_view) == ((), None)
    many = event | {"data": event["data"] | {"views": event["data"]["views"] * MAX_VIEWS}}
    assert not validator.is_valid(many)
    with pytest.raises(ValidationError, match="at most 16 items"):
        VerdictEvent.model_validate(many)


def test_a_writer_is_held_to_the_schema() -> None:
    """The same document is refused as an event of ours, and an unknown type even to a reader."""
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        RejectionEvent.model_validate(_later_rejection())
    with pytest.raises(UnknownEventTypeError):
        read_event(json.dumps(_later_rejection(type="image.scanned.v1")))
    with pytest.raises(ValueError, match="check_id"):
        read_event(json.dumps(_later_rejection(data={"reason": "empty"})))
