"""The web application: page and API over one domain, without state of its own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress
from importlib.metadata import version

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from detector.images.memory import MemoryBudgetError
from worker.broker.connection import connect
from worker.client import AsyncClient, Client
from worker.client.errors import QueueUnreachableError
from worker.database.database import Database
from worker.database.errors import DatabaseUnavailableError
from worker.reviews import statistics
from worker.reviews.errors import ReviewError
from worker.settings import Settings
from worker.storage import StorageUnavailableError
from worker.telemetry.logs import get_logger
from worker.web import api
from worker.web.api.description import description
from worker.web.check_states import CheckStates
from worker.web.identity import Identities, IdentityError, OneTimeLinks
from worker.web.intake import Intake, SqsIntake
from worker.web.live import Live
from worker.web.metrics import Measured
from worker.web.pages import audit, figures, items, media, review, webhooks
from worker.web.pages import settings as settings_page
from worker.web.pages.frame import CountsOnly
from worker.web.pages.rendering import html, text
from worker.web.pictures import Pictures
from worker.web.problems import ProblemError
from worker.web.security import Guard, RateLimit
from worker.web.site import Moderators, Site
from worker.web.submissions import Submissions
from worker.web.tokens import Tokens
from worker.webhooks.addresses import Addresses

log = get_logger(__name__)

# An answer of the broker, or the error that says why there is none.
_BROKER_SECONDS = 8.0
_UPLOADS = 4
_REVIEW_STATUS = {"not_found": 404, "not_allowed": 403, "not_judged": 422}
_TITLES = {
    401: "Who are you?",
    403: "Not for you",
    404: "Not found",
    429: "Too many requests",
    503: "Not available now",
}


def create_app(settings: Settings, database: Database, *, links: OneTimeLinks | None = None) -> FastAPI:
    """Return the application on an open database; with `links`, for this machine alone.

    Connections to broker and object store are made when they are needed, and closed at shutdown.
    """
    web = settings.web
    client = Client(settings)
    broker = connect(settings.broker, within_seconds=_BROKER_SECONDS)
    submissions = Submissions(settings, broker)

    def waiting() -> str:
        with database.transaction() as tx:
            return text("counts.html.j2", page=CountsOnly(statistics.queue(tx)))

    site = Site(
        settings=settings,
        database=database,
        client=client,
        pictures=Pictures(settings, client.storage),
        live=Live(database, waiting),
        moderators=Moderators(),
        identities=Identities(web, links),
        links=links,
        claims=RateLimit(web.claims_per_minute),
        requests=RateLimit(web.requests_per_minute),
        tokens=Tokens(database),
        submissions=submissions,
        check_states=CheckStates(settings, broker, database),
        intake=Intake(settings, client.storage, submissions),
        uploads=asyncio.Semaphore(_UPLOADS),
        waiting=AsyncClient(settings, timeout_seconds=_BROKER_SECONDS),
        webhook_addresses=Addresses(settings.webhooks.networks),
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        listening = asyncio.create_task(site.live.run())
        with SqsIntake(settings, site.intake) if settings.intake_sqs_url else nullcontext():
            yield
        listening.cancel()
        with suppress(asyncio.CancelledError):
            await listening
        await site.waiting.aclose()
        broker.close()
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
    app.openapi = description  # type: ignore[method-assign] # as FastAPI documents it
    app.state.site = site
    for page in (review, items, figures, audit, webhooks, settings_page, media):
        app.include_router(page.router)
    app.include_router(api.router)
    _tell_errors(app)
    app.add_middleware(Guard, public_url=web.public_url, loopback=links is not None)
    app.add_middleware(Measured)
    return app


def _tell_errors(app: FastAPI) -> None:
    """Answer every error with a problem, and a person who reads a page with a page."""

    @app.exception_handler(ProblemError)
    def _problem(request: Request, error: ProblemError) -> Response:
        return _answer(request, error)

    @app.exception_handler(IdentityError)
    def _unknown(request: Request, error: IdentityError) -> Response:
        return _answer(request, ProblemError(401, "not_identified", str(error)))

    @app.exception_handler(ReviewError)
    def _review(request: Request, error: ReviewError) -> Response:
        status = _REVIEW_STATUS.get(error.reason, 409)
        return _answer(request, ProblemError(status, error.reason, str(error)))

    @app.exception_handler(DatabaseUnavailableError)
    @app.exception_handler(StorageUnavailableError)
    @app.exception_handler(QueueUnreachableError)
    @app.exception_handler(MemoryBudgetError)
    def _unavailable(request: Request, error: Exception) -> Response:
        reasons: dict[type[Exception], tuple[str, str]] = {
            DatabaseUnavailableError: ("database_unavailable", "The database does not answer; try again."),
            StorageUnavailableError: ("storage_unavailable", "The object store does not answer; try again."),
            QueueUnreachableError: ("broker_unavailable", "The broker does not answer; try again."),
            MemoryBudgetError: ("busy", "Too many pictures are opened at this moment; try again."),
        }
        reason, detail = next(found for kind, found in reasons.items() if isinstance(error, kind))
        log.warning("request_not_served", path=request.url.path, reason=reason, error=str(error))
        return _answer(request, ProblemError(503, reason, detail, headers={"Retry-After": "5"}))

    @app.exception_handler(HTTPException)
    def _http(request: Request, error: HTTPException) -> Response:
        reason = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "refused")
        headers = dict(error.headers or {})
        return _answer(request, ProblemError(error.status_code, reason, str(error.detail), headers=headers))

    @app.exception_handler(RequestValidationError)
    def _invalid(request: Request, error: RequestValidationError) -> Response:
        faults = [
            {"field": ".".join(str(part) for part in fault["loc"][1:]), "detail": fault["msg"]}
            for fault in error.errors()
        ]
        detail = f"{faults[0]['field'] or 'body'}: {faults[0]['detail']}"
        return _answer(request, ProblemError(422, "invalid_request", detail, faults=faults))

    @app.exception_handler(Exception)
    def _internal(request: Request, error: Exception) -> Response:
        log.error("request_failed", path=request.url.path, exc_info=error)
        return _answer(request, ProblemError(500, "internal_error", "The request failed; the log says why."))


def _answer(request: Request, error: ProblemError) -> Response:
    """Return a page to a browser that opens one, and a problem to everyone else."""
    wants_page = "text/html" in request.headers.get("accept", "") and request.method == "GET"
    if not wants_page or request.url.path.startswith("/v1/"):
        return error.response()
    reply = html(
        "error.html.j2",
        status=error.status,
        title=_TITLES.get(error.status, "That did not work"),
        detail=error.detail,
    )
    reply.headers.update(error.headers)
    return reply
