"""The schemas and the AsyncAPI document of the contract."""

import base64
import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator, Draft202012Validator
from referencing import Registry, Resource

from deploy.generators.schemas import MESSAGES, asyncapi, documents, entry_schema, examples
from worker.broker.app import create_app
from worker.contract.envelope import decode
from worker.contract.messages import InvalidMessageError
from worker.settings import Settings

FOLDER = Path(__file__).parents[2] / "deploy" / "schemas"
#: AsyncAPI's own schema (tests/data/SOURCES.md).
OFFICIAL = json.loads((Path(__file__).parents[1] / "data" / "asyncapi-3.0.0.json").read_text())
NAMES = [*MESSAGES, "queue-entry"]


def _validator(name: str) -> Draft202012Validator:
    files = {f"./{path.name}": json.loads(path.read_text()) for path in FOLDER.glob("*.json")}
    # The descriptions of the interfaces are no schemas.
    del files["./asyncapi.json"], files["./openapi.json"]
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
    """`make schemas` writes them, and there is no other file beside them."""
    assert (FOLDER / name).read_text() == documents()[name], "run `make schemas`"
    assert {path.name for path in FOLDER.iterdir()} == documents().keys()


def test_the_document_is_valid_by_the_schema_of_asyncapi_itself() -> None:
    """The schema of AsyncAPI 3.0.0 accepts it, and refuses it without the channel of an operation."""
    validator = Draft7Validator(OFFICIAL)
    document = asyncapi()
    assert [error.message for error in validator.iter_errors(document)] == []
    broken = copy.deepcopy(document)
    del broken["operations"]["sendVerdicts"]["channel"]
    assert list(validator.iter_errors(broken))


def test_every_reference_of_the_document_resolves() -> None:
    """Internal references to a part of it, others to a schema beside it."""
    document = asyncapi()
    for reference in _references(document):
        if reference.startswith("#/"):
            part: Any = document
            for step in reference.removeprefix("#/").split("/"):
                part = part[step]
        else:
            assert (FOLDER / reference).is_file(), reference


def test_the_channels_are_those_of_the_application() -> None:
    """The queues that workers consume, the streams that they and relays write, and nothing else."""
    settings = Settings.model_construct()
    queues = {queue.name for queue in create_app(settings).conf.task_queues}
    streams = {settings.verdict_stream, settings.decision_stream, settings.dead_letter_stream}
    assert {channel["address"] for channel in asyncapi()["channels"].values()} == queues | streams


@pytest.mark.parametrize("name", NAMES)
def test_each_example_follows_its_schema(name: str) -> None:
    """And the schema refuses the example without any of its required fields."""
    example = examples()[name]
    validator = _validator(name)
    assert [error.message for error in validator.iter_errors(example)] == []
    for required in validator.schema["required"]:  # type: ignore[index]
        assert list(validator.iter_errors({key: part for key, part in example.items() if key != required}))


def test_the_smallest_entry_that_the_schema_allows_is_accepted() -> None:
    """The fields that a producer without Celery must write: a worker decodes the check from them."""
    check = {"bucket": "uploads", "key": "a.jpg", "check_id": "c-1"}
    entry = {
        "body": base64.b64encode(json.dumps([[check], {}, {}]).encode()).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": "check_image", "id": "1"},
        "properties": {"body_encoding": "base64"},
    }
    assert not list(_validator("queue-entry").iter_errors(entry))
    payload = decode(
        json.dumps(entry).encode(), "image-checks", tag="t", server_time=time.time(), longest_wait_seconds=1
    )
    (text,), _, _ = json.loads(base64.b64decode(payload["body"]))
    assert json.loads(text) == check


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        (None, "content-type", "application/x-python-serialize"),
        (None, "body", 1),
        ("headers", "task", "other"),
        ("headers", "id", ""),
        ("headers", "retries", -1),
        ("properties", "body_encoding", "hex"),
    ],
)
def test_the_schema_of_an_entry_refuses_what_a_worker_refuses(
    part: str | None, field: str, value: object
) -> None:
    """Both refuse the same entry."""
    entry = examples()["queue-entry"]
    (entry[part] if part else entry)[field] = value
    assert list(_validator("queue-entry").iter_errors(entry))
    with pytest.raises(InvalidMessageError):
        decode(
            json.dumps(entry).encode(),
            "image-checks",
            tag="t",
            server_time=time.time(),
            longest_wait_seconds=1,
        )


def test_the_body_of_an_entry_follows_its_content_schema() -> None:
    """One check as the only argument; a second argument or a callback is refused."""
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
