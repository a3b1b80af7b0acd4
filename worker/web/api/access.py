"""Who may call the API: machines with a token that has the scope, and people with a role."""

from collections.abc import Callable
from dataclasses import dataclass

from fastapi import Request

from worker.database.tokens import Scope
from worker.web.identity import Role
from worker.web.problems import ProblemError
from worker.web.security import is_machine
from worker.web.site import CurrentSite, person, within_rate


@dataclass(frozen=True)
class Caller:
    """Who calls: `name` is for the audit, a token's id or a person's pseudonym."""

    name: str


def allow(scope: Scope | None, *roles: Role) -> Callable[[Request, CurrentSite], Caller]:
    """Return a dependency that lets tokens with this scope pass, and people with one of these roles.

    Without a scope no token passes.
    """

    def allowed(request: Request, parts: CurrentSite) -> Caller:
        if is_machine(request.headers):
            return _machine(request, parts, scope)
        found = person(request, parts)
        if not found.may(*roles):
            needed = f"a token with the scope {scope}, or " if scope else ""
            raise ProblemError(403, "not_allowed", f"This needs {needed}the role {' or '.join(roles)}.")
        with parts.database.transaction() as tx:
            return Caller(str(parts.moderators.of(tx, found).id))

    return allowed


def _machine(request: Request, parts: CurrentSite, scope: Scope | None) -> Caller:
    token = parts.tokens.valid(request.headers["authorization"].removeprefix("Bearer "))
    if token is None:
        raise ProblemError(
            401,
            "token_refused",
            "The token is unknown, was revoked or has expired.",
            headers={"WWW-Authenticate": "Bearer"},
        )
    if scope is None:
        raise ProblemError(403, "not_allowed", "No token may do this; people with the role admin may.")
    if scope not in token.scopes:
        raise ProblemError(403, "scope_missing", f"The token {token.id} has not the scope {scope}.")
    within_rate(parts.requests, f"token:{token.id}")
    return Caller(f"token:{token.id}")
