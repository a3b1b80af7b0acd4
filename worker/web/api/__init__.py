"""The HTTP API, below /v1: checks, appeals, notifications of object stores, webhooks, tokens."""

from fastapi import APIRouter

from worker.web.api import appeals, checks, intake, tokens, webhooks

#: All endpoints of the API.
router = APIRouter()
for _part in (checks, appeals, intake, webhooks, tokens):
    router.include_router(_part.router)
