"""Bodies of requests: bounded in bytes and depth before anything else reads them."""

from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Annotated, Any

from fastapi import Header, Request
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from worker.contract.envelope import bounded_json
from worker.contract.messages import InvalidMessageError
from worker.web.problems import ProblemError

#: Bytes of a JSON body: a batch of the largest checks that the contract allows.
MAX_JSON_BYTES = 4 << 20
#: Bytes of an upload around its picture.
MULTIPART_BYTES = 64 << 10

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        description="Names this request, for the same caller: sent again, it is answered as the first was.",
    ),
]


class _BoundedRequest(Request):
    """A request whose body ends with a problem where it is too long."""

    async def stream(self) -> AsyncGenerator[bytes, None]:
        limit = MAX_JSON_BYTES
        if is_multipart(self):
            limit = self.app.state.site.settings.max_bytes + MULTIPART_BYTES
        received = 0
        stated = self.headers.get("content-length", "0")
        if stated.isdecimal() and int(stated[:20]) > limit:
            raise _too_large(limit)
        async for chunk in super().stream():
            received += len(chunk)
            if received > limit:
                raise _too_large(limit)
            yield chunk


class BoundedRoute(APIRoute):
    """A route that reads JSON itself, before FastAPI and pydantic do."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler."""
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            own = _BoundedRequest(request.scope, request.receive)
            if request.method not in {"GET", "DELETE"} and not is_multipart(request):
                try:
                    body = await own.body()
                except ClientDisconnect as error:
                    raise ProblemError(400, "malformed", "The request ended before its body.") from error
                if body:
                    own._json = parsed(body)  # noqa: SLF001 - what its own `json` would cache
            return await handle(own)

        return bounded


def is_multipart(request: Request) -> bool:
    """Return whether a request is an upload."""
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


def parsed(body: bytes) -> Any:
    """Return what a JSON body says. Raises `ProblemError`."""
    try:
        return bounded_json(body)
    except InvalidMessageError as error:
        raise ProblemError(400, "malformed", str(error).replace("The entry", "The body")) from error


def _too_large(limit: int) -> ProblemError:
    return ProblemError(413, "too_large", f"The body has more than {limit} bytes.")
