"""The contract as documents."""

import base64
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator, Draft202012Validator
from referencing import Registry, Resource

from deploy.generators.asyncapi import asyncapi, documents, entry_schema, examples
from worker.broker.app import create_app
from worker.contract.envelope import admit
from worker.contract.messages import SCHEMAS, InvalidMessageError
from worker.settings import Settings

FOLDER = Path(__file__).parents[2] / "deploy" / "schemas"
#: AsyncAPI's own schema (tests/data/SOURCES.md).
OFFICIAL = json.loads((Path(__file__).parents[1] / "data" / "asyncapi-3.0.0.json").read_text())
NAMES = [*SCHEMAS, "queue-entry"]


def _validator(name: str) -> Draft202012Validator:
    files = {f"./{path.name}": json.loads(path.read_text()) for path in FOLDER.glob("*.json")}
    # The document of AsyncAPI is no schema.
    del files["./asyncapi.json"]
    registry: Registry[Any] = Registry().with_resources(
        (uri, Resource.from_contents(schema)) for uri, schema in files.items()
    )
    return Draft202012Validator(files[f"./{name}.json"], registry=registry)


def _references(part: object) -> Iterator[str]:
    if isinstance(part, dict):
        for key, value in part.items():
            if key == "$ref":
                yield value
            else:
                yield from _references(value)
    elif isinstance(part, list):
        for value in part:
            yield from _references(value)


@pytest.mark.parametrize("name", documents())
def test_the_documents_in_the_repository_are_those_of_the_code(name: str) -> None:
    """Whoever changes the contract sees it in the documents."""
    assert (FOLDER / name).read_text() == documents()[name], "run `make schemas`"


def test_the_document_is_valid_by_the_schema_of_asyncapi_itself() -> None:
    """AsyncAPI 3.0.0 says so; and it says no to a document without an operation's channel."""
    validator = Draft7Validator(OFFICIAL)
    document = asyncapi()
    assert [error.message for error in validator.iter_errors(document)] == []
    broken = copy.deepcopy(document)
    del broken["operations"]["sendVerdicts"]["channel"]
    assert list(validator.iter_errors(broken))


def test_every_reference_of_the_document_leads_somewhere() -> None:
    """Those within it to a part of it, the others to a schema beside it."""
    document = asyncapi()
    for reference in _references(document):
        if reference.startswith("#/"):
            part: Any = document
            for step in reference.removeprefix("#/").split("/"):
                part = part[step]
        else:
            assert (FOLDER / reference).is_file(), reference


def test_the_channels_are_those_of_the_application() -> None:
    """Each queue that workers take from and each stream that they write to is a channel, and no other."""
    settings = Settings.model_construct()
    queues = {queue.name for queue in create_app(settings).conf.task_queues}
    streams = {settings.verdict_stream, settings.dead_letter_stream}
    assert {channel["address"] for channel in asyncapi()["channels"].values()} == queues | streams


@pytest.mark.parametrize("name", NAMES)
def test_each_example_follows_its_schema(name: str) -> None:
    """And a schema says no to an example that lost what it requires."""
    example = examples()[name]
    validator = _validator(name)
    assert [error.message for error in validator.iter_errors(example)] == []
    for required in validator.schema["required"]:  # type: ignore[index]
        assert list(validator.iter_errors({key: part for key, part in example.items() if key != required}))


def test_the_smallest_entry_that_the_schema_allows_is_admitted() -> None:
    """What a producer without Celery must write, and nothing else: a worker finds the check in it."""
    check = {"bucket": "uploads", "key": "a.jpg", "check_id": "c-1"}
    entry = {
        "body": base64.b64encode(json.dumps([[check], {}, {}]).encode()).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": "check_image", "id": "1"},
        "properties": {"delivery_tag": "2", "body_encoding": "base64"},
    }
    assert not list(_validator("queue-entry").iter_errors(entry))
    payload = admit(json.dumps(entry).encode(), "image-checks", longest_wait_seconds=1)
    assert json.loads(base64.b64decode(payload["body"]))[0] == [check]


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        (None, "content-type", "application/x-python-serialize"),
        (None, "body", 1),
        ("headers", "task", "other"),
        ("headers", "id", ""),
        ("headers", "retries", -1),
        ("properties", "delivery_tag", None),
        ("properties", "body_encoding", "hex"),
    ],
)
def test_the_schema_of_an_entry_refuses_what_a_worker_refuses(
    part: str | None, field: str, value: object
) -> None:
    """Both say no to the same entry."""
    entry = examples()["queue-entry"]
    (entry[part] if part else entry)[field] = value
    assert list(_validator("queue-entry").iter_errors(entry))
    with pytest.raises(InvalidMessageError):
        admit(json.dumps(entry).encode(), "image-checks", longest_wait_seconds=1)


def test_the_body_of_an_entry_follows_the_schema_within_its_schema() -> None:
    """One check as the only argument; a second one, or a call back, is no message of ours."""
    within = entry_schema()["properties"]["body"]["contentSchema"]
    registry = _validator("queue-entry")._registry  # noqa: SLF001 - the same files
    validator = Draft202012Validator(within, registry=registry)
    body = json.loads(base64.b64decode(examples()["queue-entry"]["body"]))
    assert [error.message for error in validator.iter_errors(body)] == []
    check = body[0][0]
    for wrong in (
        [[check, check], {}, {}],
        [[], {}, {}],
        [[check], {"a": 1}, {}],
        [[check], {}, {"chain": [1]}],
    ):
        assert list(validator.iter_errors(wrong))
