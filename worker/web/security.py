"""What holds for every request: same origin, JSON alone, security headers, one limit for a body, rates."""

import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders

from worker.web.problems import ProblemResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: How a machine's token begins; it is no ambient credential, so no other site can make a browser send it.
TOKEN_PREFIX = "dnf_"  # noqa: S105 - not a password  # nosec B105

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_SAFE = {"GET", "HEAD", "OPTIONS"}
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


def is_machine(headers: Headers) -> bool:
    """Return whether a request comes with a machine's token."""
    return headers.get("authorization", "").startswith(f"Bearer {TOKEN_PREFIX}")


class Guard:
    """Refuses what another site sends in a person's name, and sets the security headers of every answer.

    `loopback` refuses every host name but this machine's own, so that no name that is made to resolve to it
    (DNS rebinding) reaches the page.
    """

    def __init__(self, app: "ASGIApp", *, public_url: str | None, loopback: bool) -> None:
        self._app = app
        self._public_url = public_url
        self._loopback = loopback

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def secured(message: "Message") -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        headers = Headers(scope=scope)
        reason = self._refused_host(headers) or self._refused_origin(scope["method"], headers)
        if reason:
            await ProblemResponse(403, "cross_site", reason)(scope, receive, secured)
            return
        await self._app(scope, receive, secured)

    def _refused_host(self, headers: Headers) -> str | None:
        if self._loopback and urlsplit(f"//{headers.get('host', '')}").hostname not in _LOOPBACK:
            return "This page is served to this machine alone."
        return None

    def _refused_origin(self, method: str, headers: Headers) -> str | None:
        if method in _SAFE or is_machine(headers):
            return None
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site is None and origin is None:
            return "A request that changes something needs the header Origin or Sec-Fetch-Site, or a token."
        if site not in {None, "same-origin"} or (origin is not None and not self._own(origin, headers)):
            return "The request comes from another site."
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if method != "DELETE" and kind != "application/json":
            return "A request that changes something has a JSON body."
        return None

    def _own(self, origin: str, headers: Headers) -> bool:
        if self._public_url:
            return origin.lower() == self._public_url
        # Behind a proxy that ends TLS the page does not know its own scheme.
        scheme, _, host = origin.lower().partition("://")
        return scheme in {"http", "https"} and host == headers.get("host", "").lower()


class RateLimit:
    """So many actions a minute for each key, in this process; a burst may use a whole minute's.

    Safe for threads. The least recently used keys are forgotten beyond `remembered`.
    """

    def __init__(self, per_minute: int, *, remembered: int = 10_000) -> None:
        self._per_minute = per_minute
        self._remembered = remembered
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_seconds(self, key: str) -> float:
        """Count one action; return 0.0 when it may happen now, otherwise the seconds until it may."""
        now = time.monotonic()
        with self._lock:
            tokens, since = self._buckets.pop(key, (float(self._per_minute), now))
            tokens = min(self._per_minute, tokens + (now - since) * self._per_minute / 60)
            allowed = tokens >= 1
            self._buckets[key] = (tokens - allowed, now)
            if len(self._buckets) > self._remembered:
                self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - tokens) * 60 / self._per_minute
