"""Site: what one process of the page holds while it runs, and what an endpoint asks it for."""

import asyncio
import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import Depends, Request

from worker.client import AsyncClient, Client
from worker.database.database import Database, Transaction
from worker.reviews.moderators import Moderator, enrol, known
from worker.settings import Settings
from worker.web.check_states import CheckStates
from worker.web.identity import Identities, OneTimeLinks, Person, Role
from worker.web.intake import Intake
from worker.web.live import Live
from worker.web.pictures import Pictures
from worker.web.problems import ProblemError
from worker.web.security import RateLimit
from worker.web.submissions import Submissions
from worker.web.tokens import Tokens
from worker.webhooks.addresses import Addresses


class Moderators:
    """The pseudonyms of people who were here lately, so that a request need not write to find its own."""

    def __init__(self, *, remembered: int = 10_000) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str], Moderator] = OrderedDict()
        self._remembered = remembered

    def of(self, tx: Transaction, person: Person) -> Moderator:
        """Return the moderator that a person is, with the roles of this request."""
        key = (person.subject, person.name)
        with self._lock:
            moderator = self._known.get(key)
        if moderator is None:
            moderator = known(tx, person.subject, person.name)
            if moderator is None:
                # Remembered at the next request: this one may yet be rolled back.
                moderator = enrol(tx, person.subject, person.name)
            else:
                self._remember(key, moderator)
        return replace(moderator, senior="senior" in person.roles)

    def _remember(self, key: tuple[str, str], moderator: Moderator) -> None:
        with self._lock:
            self._known[key] = moderator
            if len(self._known) > self._remembered:
                self._known.popitem(last=False)


@dataclass(frozen=True)
class Site:
    """The parts that endpoints work with."""

    settings: Settings
    #: Reviews, decisions and all else that lasts.
    database: Database
    #: Broker and object store.
    client: Client
    pictures: Pictures
    live: Live
    moderators: Moderators
    identities: Identities
    #: For a page on this machine alone; otherwise absent.
    links: OneTimeLinks | None
    claims: RateLimit
    requests: RateLimit
    #: What the HTTP API works with.
    tokens: Tokens
    submissions: Submissions
    check_states: CheckStates
    intake: Intake
    #: Uploads whose bytes the process holds at one time; more wait, on disk.
    uploads: asyncio.Semaphore
    #: For those who wait for an event.
    waiting: AsyncClient
    webhook_addresses: Addresses


def site(request: Request) -> Site:
    """Return the parts of this process."""
    parts: Site = request.app.state.site
    return parts


CurrentSite = Annotated[Site, Depends(site)]


def person(request: Request, parts: CurrentSite) -> Person:
    """Return who sends the request. Raises `IdentityError`, and `ProblemError` for too many requests."""
    found = parts.identities.person(
        request.headers, request.cookies, request.client.host if request.client else None
    )
    within_rate(parts.requests, found.subject)
    return found


CurrentPerson = Annotated[Person, Depends(person)]


def require(*roles: Role) -> Callable[[Person], Person]:
    """Return a dependency that lets only people with one of these roles pass."""

    def allowed(current: CurrentPerson) -> Person:
        if not current.may(*roles):
            raise ProblemError(
                403, "not_allowed", f"This needs the role {' or '.join(roles)}, which {current.name} has not."
            )
        return current

    return allowed


def within_rate(limit: RateLimit, key: str) -> None:
    """Count an action. Raises `ProblemError` 429 with `Retry-After` when it comes too early."""
    if wait := limit.wait_seconds(key):
        seconds = math.ceil(wait)
        raise ProblemError(
            429,
            "too_many_requests",
            f"Too many requests; the next one is accepted in {seconds} s.",
            headers={"Retry-After": str(seconds)},
        )
