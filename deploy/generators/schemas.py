"""The contract as documents: JSON Schemas of the messages, and AsyncAPI 3.0 of all queues and streams.

`python -m deploy.generators.schemas FOLDER` writes them.
"""

import json
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from detector.bundle.thresholds import Thresholds
from worker.contract.envelope import Entry, encode
from worker.contract.messages import (
    CHECK_IMAGE,
    QUEUES,
    DeadLetter,
    Decision,
    DecisionEvent,
    EndpointDisabled,
    EndpointDisabledEvent,
    ImageCheck,
    Model,
    PictureFacts,
    Rejection,
    RejectionEvent,
    Thumbnail,
    Verdict,
    VerdictEvent,
    ViewScore,
    event_id,
)
from worker.settings import Settings
from worker.web.api.description import description

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_FORMAT = "application/schema+json;version=draft-2020-12"
_DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
_PRIORITIES = {
    "image-checks.urgent": "first",
    "image-checks": "second, and producers use it by default",
    "image-checks.bulk": "last",
}

#: The model of each message, by the name of its schema.
MESSAGES: dict[str, type[BaseModel]] = {
    "image-check": ImageCheck,
    "image-verdict-v1": VerdictEvent,
    "image-rejected-v1": RejectionEvent,
    "image-decision-v1": DecisionEvent,
    "dead-letter": DeadLetter,
    "webhook-endpoint-disabled-v1": EndpointDisabledEvent,
}


def message_schema(name: str) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of one of `MESSAGES`."""
    mode: Literal["validation", "serialization"] = "validation" if name == "image-check" else "serialization"
    return {"$schema": _DIALECT} | MESSAGES[name].model_json_schema(mode=mode)


def entry_schema() -> dict[str, Any]:
    """Return the JSON Schema of a queue entry as workers read it; `contentSchema` describes its body."""
    schema = {"$schema": _DIALECT} | Entry.model_json_schema(by_alias=True)
    schema["properties"]["headers"] = {"$ref": "#/$defs/EntryHeaders"}
    schema["$defs"]["EntryHeaders"]["properties"]["task"]["const"] = CHECK_IMAGE
    schema["properties"]["body"] |= {
        "contentEncoding": "base64",
        "contentMediaType": "application/json",
        "contentSchema": {
            "type": "array",
            "prefixItems": [
                {
                    "type": "array",
                    "prefixItems": [{"$ref": "./image-check.json"}],
                    "minItems": 1,
                    "maxItems": 1,
                },
                {"type": "object", "maxProperties": 0},
                {"type": "object", "additionalProperties": {"type": "null"}},
            ],
            "minItems": 3,
            "maxItems": 3,
        },
    }
    return schema


def examples() -> dict[str, Any]:
    """Return an example of each message as JSON, by the name of its schema."""
    check = ImageCheck(
        check_id="upload-4711",
        bucket="uploads",
        key="2026/11/picture.jpg",
        metadata={"user": "u-17"},
        submitted_at=_NOON,
    )
    outcome: dict[str, Any] = {
        "check_id": check.check_id,
        "policy": check.policy,
        "durations_ms": {"queue_wait": 12.0, "fetch": 8.5, "decode": 4.0, "dnf": 210.0, "total": 241.0},
        "attempt": 1,
        "worker": "worker-1",
        "metadata": check.metadata,
    }
    envelope: dict[str, Any] = {
        "id": event_id(check.check_id, _DIGEST, check.policy),
        "source": "dnf-moderation",
        "subject": check.uri,
        "time": _NOON,
    }
    verdict = Verdict(
        **outcome,
        verdict="review",
        score=0.62,
        views=(
            ViewScore(x=0, y=0, width=512, height=512, score=0.31),
            ViewScore(x=512, y=256, width=512, height=512, score=0.87),
        ),
        strongest_view=1,
        thresholds=Thresholds(review_from=0.5, generated_from=0.9),
        model=Model(name="default", version="1", digest=_DIGEST),
        picture=PictureFacts(sha256=_DIGEST, width=1024, height=768, format="JPEG", bytes=184_221),
        thumbnail=Thumbnail(width=128, height=128, sha256=_DIGEST),
        batch_size=4,
    )
    rejection = Rejection(**outcome, reason="truncated", detail="The file ends before the picture does.")
    dead_letter = DeadLetter(
        check_id=check.check_id,
        message=check.model_dump_json(),
        queue="image-checks",
        reason="storage_unavailable",
        detail="The store did not answer.",
        attempts=1,
        time=_NOON,
    )
    endpoint = "3f0c9a52-6d3f-4a54-9a3e-6f6f0c0a4711"
    disabled = EndpointDisabledEvent(
        id="0c5d1f6e-4a54-4f0e-8f7b-1b9f0c0a4711",
        source="dnf-moderation",
        subject=endpoint,
        time=_NOON,
        data=EndpointDisabled(
            endpoint=endpoint, url="https://platform.example/hook", reason="failing", failing_since=_NOON
        ),
    )
    decision = Decision(
        check_id=check.check_id,
        policy=check.policy,
        outcome="real",
        basis="source_found",
        revision=1,
        moderator="5b0f3c5e-4b8a-4a53-8f0e-2f9a3d1c4711",
        blind=False,
        seconds=14.2,
        origin="uncertain",
        sampling_probability=1.0,
        verdict=verdict.verdict,
        score=verdict.score,
        model=verdict.model,
        verdict_event=envelope["id"],
        sha256=_DIGEST,
        metadata=check.metadata,
    )
    decided = envelope | {"id": "0c0a4711-52c1-4f0e-8f7b-7f6f2b1e1b9f"}
    entry = json.loads(encode(check.model_dump(mode="json"), "image-checks"))
    entry["headers"]["id"] = entry["headers"]["root_id"] = "0d5b3a52-6d3f-4a54-9a3e-6f6f0c0a4711"
    entry["properties"]["correlation_id"] = entry["headers"]["id"]
    entry["properties"]["delivery_tag"] = "7f6f2b1e-52c1-4f0e-8f7b-1b9f0c0a4711"
    return {
        "queue-entry": entry,
        "image-check": check.model_dump(mode="json"),
        "image-verdict-v1": VerdictEvent(**envelope, data=verdict).model_dump(mode="json"),
        "image-rejected-v1": RejectionEvent(**envelope, data=rejection).model_dump(mode="json"),
        "image-decision-v1": DecisionEvent(**decided, data=decision).model_dump(mode="json"),
        "dead-letter": dead_letter.model_dump(mode="json"),
        "webhook-endpoint-disabled-v1": disabled.model_dump(mode="json"),
    }


def asyncapi() -> dict[str, Any]:
    """Return the AsyncAPI 3.0 document from the view of a worker, with the names of the default settings."""
    settings = Settings.model_construct()
    checks = {
        _identifier(queue): {
            "address": queue,
            "description": f"A list; workers take from its right end, from this queue {_PRIORITIES[queue]}.",
            "messages": {"entry": {"$ref": "#/components/messages/queue-entry"}},
        }
        for queue in QUEUES
    }
    streams = {
        "verdicts": {
            "address": settings.verdict_stream,
            "description": "A stream, read with XREAD or in groups with XREADGROUP and XACK. An entry has the"
            " field `event`, JSON. Each check has one event;"
            f" about {settings.verdict_stream_max_length} events are kept.",
            "messages": {
                name: {"$ref": f"#/components/messages/{name}"}
                for name in ("image-verdict-v1", "image-rejected-v1")
            },
        },
        "decisions": {
            "address": settings.decision_stream,
            "description": "A stream, read like `verdicts`. Each decision of a person has one event, some"
            " seconds after it was taken.",
            "messages": {"image-decision-v1": {"$ref": "#/components/messages/image-decision-v1"}},
        },
        "deadLetters": {
            "address": settings.dead_letter_stream,
            "description": "A stream; an entry has the field `dead_letter`, JSON. About"
            f" {settings.dead_letter_stream_max_length} dead letters are kept.",
            "messages": {"dead-letter": {"$ref": "#/components/messages/dead-letter"}},
        },
    }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "dnf-moderation",
            "version": version("dnf-moderation"),
            "description": "Checks of pictures in, verdicts out, over Redis or Valkey.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "broker": {
                "host": "{host}",
                "protocol": "redis",
                "description": "The server in DNF_REDIS_URL.",
                "variables": {"host": {"default": "127.0.0.1:6379"}},
                "security": [{"$ref": "#/components/securitySchemes/password"}],
            }
        },
        "channels": checks | streams,
        "operations": {
            **{
                f"receive{name[0].upper()}{name[1:]}": {
                    "action": "receive",
                    "channel": {"$ref": f"#/channels/{name}"},
                    "summary": "Judge the picture of a check.",
                }
                for name in checks
            },
            "sendVerdicts": {
                "action": "send",
                "channel": {"$ref": "#/channels/verdicts"},
                "summary": "Publish the event of a check, exactly once.",
            },
            "sendDecisions": {
                "action": "send",
                "channel": {"$ref": "#/channels/decisions"},
                "summary": "Publish what a person decided, exactly once; a relay does so.",
            },
            "sendDeadLetters": {
                "action": "send",
                "channel": {"$ref": "#/channels/deadLetters"},
                "summary": "Keep a message that could not be processed.",
            },
        },
        "components": {
            "messages": {
                name: {
                    "name": name,
                    "title": name,
                    "contentType": "application/json",
                    "payload": {"schemaFormat": _FORMAT, "schema": {"$ref": f"./{name}.json"}},
                    "examples": [{"name": name, "payload": example}],
                }
                for name, example in examples().items()
                if name != "image-check"
            },
            "securitySchemes": {"password": {"type": "userPassword"}},
        },
    }


def documents() -> dict[str, str]:
    """Return the text of every document by its file name."""
    made = {f"{name}.json": message_schema(name) for name in MESSAGES}
    made |= {"queue-entry.json": entry_schema(), "asyncapi.json": asyncapi(), "openapi.json": description()}
    return {name: json.dumps(document, indent=2) + "\n" for name, document in made.items()}


def _identifier(queue: str) -> str:
    first, *others = queue.replace(".", "-").split("-")
    return first + "".join(part.title() for part in others)


if __name__ == "__main__":
    for _name, _text in documents().items():
        (Path(sys.argv[1]) / _name).write_text(_text, encoding="utf-8")
