"""The web application: page and API over one domain, without state of its own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from worker.client import Client
from worker.settings import Settings
from worker.telemetry.logs import get_logger
from worker.web.identity import Identities, IdentityError, OneTimeLinks
from worker.web.problems import ProblemError, ProblemResponse
from worker.web.security import Guard, RateLimit
from worker.web.site import Site

log = get_logger(__name__)


def create_app(settings: Settings, database: Any, *, links: OneTimeLinks | None = None) -> FastAPI:
    """Return the application on an open database; with `links`, for this machine alone.

    Connections to broker and object store are made when they are needed, and closed at shutdown.
    """
    web = settings.web
    client = Client(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        client.close()

    app = FastAPI(
        title="dnf-moderation",
        version=version("dnf-moderation"),
        # Their pages load scripts from other hosts.
        docs_url=None,
        redoc_url=None,
        openapi_url="/v1/openapi.json",
        lifespan=lifespan,
    )
    app.state.site = Site(
        settings=settings,
        database=database,
        client=client,
        identities=Identities(web, links),
        links=links,
        claims=RateLimit(web.claims_per_minute),
        requests=RateLimit(web.requests_per_minute),
    )
    _tell_errors(app)
    app.add_middleware(Guard, public_url=web.public_url, loopback=links is not None)
    return app


def _tell_errors(app: FastAPI) -> None:
    """Answer every error with a problem."""

    @app.exception_handler(ProblemError)
    def _problem(_: Request, error: ProblemError) -> Response:
        return error.response()

    @app.exception_handler(IdentityError)
    def _unknown(_: Request, error: IdentityError) -> Response:
        return ProblemResponse(401, "not_identified", str(error))

    @app.exception_handler(HTTPException)
    def _http(_: Request, error: HTTPException) -> Response:
        reason = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "refused")
        return ProblemResponse(error.status_code, reason, str(error.detail), headers=error.headers)

    @app.exception_handler(RequestValidationError)
    def _invalid(_: Request, error: RequestValidationError) -> Response:
        faults = [
            {"field": ".".join(str(part) for part in fault["loc"][1:]), "detail": fault["msg"]}
            for fault in error.errors()
        ]
        first = faults[0]
        return ProblemResponse(
            422, "invalid_request", f"{first['field'] or 'body'}: {first['detail']}", faults=faults
        )

    @app.exception_handler(Exception)
    def _internal(request: Request, error: Exception) -> Response:
        log.error("request_failed", path=request.url.path, exc_info=error)
        return ProblemResponse(500, "internal_error", "The request failed; the log says why.")
