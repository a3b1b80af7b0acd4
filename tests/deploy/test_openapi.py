"""The OpenAPI document of the HTTP API."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

DOCUMENT: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "deploy" / "schemas" / "openapi.json").read_text()
)
OPERATIONS = [
    (method, path, operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]


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


def test_every_reference_resolves_and_every_component_is_a_schema() -> None:
    """By the rules of JSON Schema 2020-12, as OpenAPI 3.1 has it."""
    assert DOCUMENT["openapi"].startswith("3.1")
    for reference in _references(DOCUMENT):
        name = reference.removeprefix("#/components/schemas/")
        assert name in DOCUMENT["components"]["schemas"], reference
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS)
def test_every_error_of_every_operation_is_a_problem(method: str, path: str, operation: Any) -> None:
    """401, 403, 429 and 503 can come from each; what comes otherwise is described."""
    errors = {status: answer for status, answer in operation["responses"].items() if status >= "400"}
    assert {"401", "403", "429", "503"} <= errors.keys(), (method, path)
    for answer in errors.values():
        assert list(answer["content"]) == ["application/problem+json"]
    assert operation["summary"]


def test_the_events_of_the_description_are_those_of_the_contract() -> None:
    """The same fields as in the schemas of the messages beside it."""
    folder = Path(__file__).parents[2] / "deploy" / "schemas"
    for name, file in [
        ("VerdictEvent", "image-verdict-v1"),
        ("RejectionEvent", "image-rejected-v1"),
        ("DecisionEvent", "image-decision-v1"),
        ("ImageCheck", "image-check"),
    ]:
        schema = json.loads((folder / f"{file}.json").read_text())
        assert DOCUMENT["components"]["schemas"][name]["properties"].keys() == schema["properties"].keys()
