"""One trace from the submission of a check to its verdict, with OpenTelemetry where it is set up.

`traceparent` of W3C Trace Context carries the trace, in the headers of the queue's message and in the event,
as the CloudEvents extension of that name. Without the `otel` extra, or without an exporter in the standard
`OTEL_` variables, no span is made, and a `traceparent` is only passed on.
"""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from typing import Any

from worker.telemetry.logs import get_logger

log = get_logger(__name__)

_NAME = "dnf-moderation"
_EXPORTER = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_EXPORTER")

_received: ContextVar[str | None] = ContextVar("received", default=None)


@contextmanager
def exported_traces() -> Iterator[None]:
    """Export this process's spans over OTLP/HTTP while the block runs, if the `OTEL_` variables say where."""
    kind = os.environ.get("OTEL_TRACES_EXPORTER", "otlp")
    off = kind == "none" or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if off or not any(os.environ.get(name) for name in _EXPORTER):
        yield
        return
    if kind != "otlp":
        log.warning("traces_not_exported", error=f"OTEL_TRACES_EXPORTER={kind}: only otlp over HTTP is there")
        yield
        return
    try:
        sdk = import_module("opentelemetry.sdk.trace")
        exporting = import_module("opentelemetry.sdk.trace.export")
        resources = import_module("opentelemetry.sdk.resources")
        otlp = import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    except ImportError as error:
        log.warning("traces_not_exported", error=f"the extra `otel` is not installed: {error}")
        yield
        return
    name = os.environ.get("OTEL_SERVICE_NAME") or _NAME
    provider = sdk.TracerProvider(resource=resources.Resource.create({"service.name": name}))
    provider.add_span_processor(exporting.BatchSpanProcessor(otlp.OTLPSpanExporter()))
    import_module("opentelemetry.trace").set_tracer_provider(provider)
    try:
        yield
    finally:
        provider.shutdown()


@contextmanager
def span(name: str, **attributes: str | float) -> Iterator[None]:
    """Run the block as a span of the current trace."""
    api = _api()
    if api is None:
        yield
        return
    with api.get_tracer(_NAME).start_as_current_span(name, attributes=attributes):
        yield


@contextmanager
def continued(traceparent: str | None, name: str, **attributes: str | float) -> Iterator[None]:
    """Run the block as a span of the trace that a message carries, or of a new one."""
    token = _received.set(traceparent)
    try:
        api = _api()
        if api is None:
            yield
            return
        parent = None
        if traceparent is not None:
            w3c = import_module("opentelemetry.trace.propagation.tracecontext")
            parent = w3c.TraceContextTextMapPropagator().extract({"traceparent": traceparent})
        with api.get_tracer(_NAME).start_as_current_span(
            name,
            context=parent,
            kind=api.SpanKind.CONSUMER,
            attributes=attributes,
            # A retried check ends with an exception of Celery's, which is not a failure.
            record_exception=False,
            set_status_on_exception=False,
        ):
            yield
    finally:
        _received.reset(token)


def record(stages_ms: Mapping[str, float]) -> None:
    """Add stages that were measured elsewhere, in milliseconds, as consecutive spans up to now."""
    api = _api()
    if api is None:
        return
    began = time.time_ns() - int(sum(stages_ms.values()) * 1e6)
    tracer = api.get_tracer(_NAME)
    for name, milliseconds in stages_ms.items():
        ended = began + int(milliseconds * 1e6)
        tracer.start_span(name, start_time=began).end(ended)
        began = ended


def describe(**attributes: str | float) -> None:
    """Add attributes to the current span."""
    if api := _api():
        api.get_current_span().set_attributes(attributes)


def traceparent() -> str | None:
    """Return the current span's `traceparent`; without a span, that of the message."""
    if api := _api():
        context = api.get_current_span().get_span_context()
        if context.is_valid:
            return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    return _received.get()


def _api() -> Any:
    # Loaded, with a provider, only where spans are made: by us, or by the platform that uses the client.
    api: Any = sys.modules.get("opentelemetry.trace")
    if api is None or isinstance(api.get_tracer_provider(), api.ProxyTracerProvider):
        return None
    return api
