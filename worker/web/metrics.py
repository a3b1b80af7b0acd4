"""The metrics of a process that serves the page and the HTTP API."""

import time
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from worker.telemetry.metrics import Documented

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from worker.web.site import Site

#: Every metric of this process, in the order of the page of metrics.
DOCUMENTED = (
    Documented(
        "dnf_web_requests_total",
        "counter",
        "Answered requests, by the kind of endpoint (page, api, media, live, other) and class of status.",
        ("endpoint", "status"),
    ),
    Documented(
        "dnf_web_request_seconds",
        "histogram",
        "Seconds from a request to the end of its answer, by the kind of endpoint; live updates excluded.",
        ("endpoint",),
    ),
    Documented("dnf_web_live_pages", "gauge", "Pages that listen for live updates."),
)
_BY_NAME = {row.name: row for row in DOCUMENTED}
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

_REGISTRY = CollectorRegistry(auto_describe=True)
_REQUESTS = Counter(
    "dnf_web_requests",
    _BY_NAME["dnf_web_requests_total"].meaning,
    _BY_NAME["dnf_web_requests_total"].labels,
    registry=_REGISTRY,
)
_REQUEST_SECONDS = Histogram(
    "dnf_web_request_seconds",
    _BY_NAME["dnf_web_request_seconds"].meaning,
    _BY_NAME["dnf_web_request_seconds"].labels,
    buckets=_SECONDS,
    registry=_REGISTRY,
)
_LIVE_PAGES = Gauge("dnf_web_live_pages", _BY_NAME["dnf_web_live_pages"].meaning, registry=_REGISTRY)
ProcessCollector(registry=_REGISTRY)

#: The values of the label `endpoint`.
ENDPOINTS = ("page", "api", "media", "live", "other")


def web_registry(site: "Site") -> CollectorRegistry:
    """Return the registry of this process."""
    _LIVE_PAGES.set_function(lambda: site.live.subscribers)
    return _REGISTRY


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
        if first in {"", "reviews", "items", "figures", "audit", "preferences", "decisions"}
        else "other"
    )


for _endpoint_name in ENDPOINTS:
    _REQUESTS.labels(_endpoint_name, "2xx")
