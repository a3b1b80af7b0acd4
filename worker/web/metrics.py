"""The metrics of a process that serves the page and the HTTP API."""

import time
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector

from worker.telemetry.metrics import MetricSet

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from worker.web.site import Site

WEB = MetricSet()

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

_REQUESTS = WEB.counter(
    "dnf_web_requests_total",
    "Answered requests, by kind of endpoint and class of status.",
    "endpoint",
    "status",
)
_REQUEST_SECONDS = WEB.histogram(
    "dnf_web_request_seconds",
    "Seconds from a request to the end of its answer, by kind of endpoint; live updates excluded.",
    _SECONDS,
    "endpoint",
)
_LIVE_PAGES = WEB.gauge("dnf_web_live_pages", "Pages that listen for live updates.")
ProcessCollector(registry=WEB.registry)

#: The values of the labels.
STATUSES = ("1xx", "2xx", "3xx", "4xx", "5xx")
ENDPOINTS = ("page", "api", "media", "live", "other")


def web_registry(site: "Site") -> CollectorRegistry:
    """Return the registry of this process."""
    _LIVE_PAGES.set_function(lambda: site.live.subscribers)
    return WEB.registry


class Measured:
    """Counts and times the requests of an application."""

    def __init__(self, app: "ASGIApp") -> None:
        self._app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        endpoint, started = _endpoint(scope["path"]), time.monotonic()
        status = 500

        async def observed(message: "Message") -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, observed)
        finally:
            _REQUESTS.labels(endpoint, f"{status // 100}xx").inc()
            if endpoint != "live":
                _REQUEST_SECONDS.labels(endpoint).observe(time.monotonic() - started)


def _endpoint(path: str) -> str:
    if path.startswith("/v1/"):
        return "api"
    if path == "/live":
        return "live"
    if path.endswith(("/picture", "/feature")) or path.startswith("/static/"):
        return "media"
    # Whatever else a scanner asks for is no page.
    first = path.split("/")[1]
    return (
        "page"
        if first in {"", "reviews", "items", "figures", "audit", "webhooks", "preferences", "decisions"}
        else "other"
    )


for _endpoint_name in ENDPOINTS:
    _REQUESTS.labels(_endpoint_name, "2xx")
