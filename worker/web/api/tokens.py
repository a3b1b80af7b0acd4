"""Tokens of machines over HTTP: made and revoked by people, so that no token makes itself another."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from starlette.responses import Response

from worker.database import tokens
from worker.database.tokens import MAX_NAME, Scope
from worker.reviews import audit
from worker.web.api.access import Caller, allow
from worker.web.api.bodies import BoundedRoute
from worker.web.api.errors import problems
from worker.web.problems import ProblemError
from worker.web.site import CurrentSite

router = APIRouter(prefix="/v1/tokens", tags=["tokens"], route_class=BoundedRoute)

MayManage = Annotated[Caller, Depends(allow(None, "admin"))]
_ERRORS = problems(400, 401, 403, 404, 422, 429, 503)


class NewToken(BaseModel):
    """A token to make."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=MAX_NAME)
    scopes: list[Scope] = Field(min_length=1)
    expires_at: AwareDatetime | None = None


class Token(BaseModel):
    """A token, without its text."""

    id: str
    name: str
    scopes: list[Scope]
    created_by: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class TokenWithText(Token):
    """A token with its text, which is shown this once."""

    token: str


@router.post("", status_code=201, responses=_ERRORS, summary="Make a token.")
def create(parts: CurrentSite, caller: MayManage, body: NewToken) -> TokenWithText:
    """Make a token and return it with its text, this once."""
    with parts.database.transaction() as tx:
        created, text = tokens.create_token(
            tx, body.name, body.scopes, by=caller.name, expires_at=body.expires_at
        )
        audit.record(
            tx, caller.name, "token_created", created.id, {"name": body.name, "scopes": list(created.scopes)}
        )
    return TokenWithText(**{**vars(created), "scopes": list(created.scopes)}, token=text)


@router.get("", responses=_ERRORS, summary="List the tokens.")
def listed(parts: CurrentSite, caller: MayManage) -> list[Token]:
    """Return all tokens, newest first, with those that are revoked or have expired."""
    del caller
    with parts.database.transaction() as tx:
        return [Token(**{**vars(token), "scopes": list(token.scopes)}) for token in tokens.tokens(tx)]


@router.delete("/{token_id}", status_code=204, responses=_ERRORS, summary="Revoke a token.")
def revoke(parts: CurrentSite, caller: MayManage, token_id: str) -> Response:
    """End a token; every process has noticed it within ten seconds."""
    with parts.database.transaction() as tx:
        if not tokens.revoke_token(tx, token_id):
            raise ProblemError(404, "not_found", "There is no such token in force.")
        audit.record(tx, caller.name, "token_revoked", token_id)
    return Response(status_code=204)
