"""The description of the API as OpenAPI, from its code."""

from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from worker.web.api import router
from worker.web.api.checks import UploadFields
from worker.web.api.errors import Problem
from worker.web.submissions import CheckRequest

_ABOUT = (
    "Submit pictures, ask for verdicts, appeal, and have events delivered. Machines come with a token"
    " (`dnf-worker tokens create`), people with their role. Every error is a problem (RFC 9457)."
)


def description() -> dict[str, Any]:
    """Return the OpenAPI document."""
    app = FastAPI(
        title="dnf-moderation",
        version=version("dnf-moderation"),
        description=_ABOUT,
        generate_unique_id_function=lambda route: f"{route.tags[0]}_{route.name}",
    )
    app.include_router(router)
    document = app.openapi()
    # Models that FastAPI does not see, since their endpoints read the body themselves.
    _, extra = models_json_schema(
        [(CheckRequest, "validation"), (UploadFields, "validation"), (Problem, "serialization")],
        ref_template="#/components/schemas/{model}",
    )
    components = document["components"]
    components["schemas"] = dict(sorted({**components["schemas"], **extra["$defs"]}.items()))
    # Validation errors are problems too.
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    components["securitySchemes"] = {
        "token": {
            "type": "http",
            "scheme": "bearer",
            "description": "`dnf_...`, with the scope that is needed.",
        }
    }
    document["security"] = [{"token": []}]
    return document
