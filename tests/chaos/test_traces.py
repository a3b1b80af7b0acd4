"""One trace from submission to verdict, as an OpenTelemetry collector receives it."""

import os
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest
import redis
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.chaos.conftest import StartFleet
from tests.chaos.proxy import FaultProxy
from worker.client import Client
from worker.contract.envelope import encode
from worker.contract.messages import ImageCheck
from worker.embedded.services import EmbeddedServices
from worker.embedded.startup import free_ports
from worker.embedded.valkey import Valkey

if TYPE_CHECKING:
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

STAGES = ("fetch", "decode", "prepare", "batch_wait", "dnf", "classify", "thumbnail", "publish")


class Collector:
    """A receiver of OTLP over HTTP that collects spans by name."""

    def __init__(self) -> None:
        self.spans: dict[str, list[Span]] = defaultdict(list)
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/v1/traces"
                request = ExportTraceServiceRequest.FromString(body)
                for resource in request.resource_spans:
                    for scope in resource.scope_spans:
                        for span in scope.spans:
                            collector.spans[span.name].append(span)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """No-op: requests are not logged."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def variables(self) -> dict[str, str]:
        """The standard variables that export traces to it, every 0.1 seconds."""
        endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}


@pytest.fixture
def collector() -> Iterator[Collector]:
    """Provide a collector."""
    collector = Collector()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()


def test_one_trace_leads_from_the_producer_through_a_retry_to_the_event(  # noqa: PLR0917 - its fixtures
    fleet: StartFleet,
    client: Client,
    collector: Collector,
    services: EmbeddedServices,
    stored_picture: str,
    chaos_environment: dict[str, str],
    wait_until: Callable[..., None],
) -> None:
    """`submit`, both attempts, every stage, the event and the logs have one trace id."""
    with FaultProxy(free_ports(1)[0]) as store:
        endpoint = f"http://127.0.0.1:{store.port}"
        workers = fleet(1, DNF_S3_ENDPOINT_URL=endpoint, **collector.variables)
        submitted = subprocess.run(
            [sys.executable, "-m", "worker.cli", "submit", f"s3://{services.bucket}/{stored_picture}"],
            env={**os.environ, **chaos_environment, **collector.variables},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        check_id = submitted.stdout.strip()
        workers.workers[0].wait_for_event("check_retried", check_id=check_id)
        store.target_port = int(services.s3_endpoint.rpartition(":")[2])
        event = client.wait_for(check_id)[check_id]
        spans = collector.spans

        def complete() -> bool:
            # The span of the last attempt ends after those of its stages.
            attempts = {span.span_id for span in spans["check"]}
            stages = [spans[stage] for stage in ("submit", *STAGES)]
            return all(stages) and spans["publish"][0].parent_span_id in attempts

        wait_until(complete, "every span is received")
    traces = {span.trace_id.hex() for name in ("submit", "check", *STAGES) for span in spans[name]}
    assert len(traces) == 1
    trace = traces.pop()
    assert len(spans["submit"]) == len(spans["publish"]) == 1
    checks = {span.span_id for span in spans["check"]}
    assert len(checks) >= 2, "a retried attempt and one that succeeded"
    assert {span.parent_span_id for span in spans["check"]} == {spans["submit"][0].span_id}
    for stage in STAGES:
        assert {span.parent_span_id for span in spans[stage]} <= checks, stage
    attributes = {each.key: each.value.string_value for each in spans["check"][-1].attributes}
    assert attributes["dnf.check_id"] == check_id
    assert attributes["dnf.queue"] == "image-checks"
    # The null detector reports one millisecond for each network.
    in_turn = [spans[stage][0] for stage in ("fetch", "decode", "dnf", "classify", "publish")]
    assert [span.start_time_unix_nano for span in in_turn] == sorted(s.start_time_unix_nano for s in in_turn)
    assert (event.envelope.traceparent or "")[:-3] == f"00-{trace}-{spans['publish'][0].span_id.hex()}"
    lines = [line for line in workers.workers[0].log_lines() if line.get("check_id") == check_id]
    assert {line["event"] for line in lines} >= {"check_retried", "image_checked"}
    assert {line["trace_id"] for line in lines} == {trace}


def test_a_worker_without_an_exporter_passes_the_trace_on(
    fleet: StartFleet, client: Client, services: EmbeddedServices, stored_picture: str, valkey: Valkey
) -> None:
    """The event has the producer's `traceparent`; without a valid one it has none."""
    fleet(1)
    given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    checks = {
        header: ImageCheck(bucket=services.bucket, key=stored_picture)
        for header in (given, None, "malformed")
    }
    with redis.Redis.from_url(valkey.url) as broker:
        for header, check in checks.items():
            message = check.model_dump(mode="json")
            broker.lpush("image-checks", encode(message, "image-checks", traceparent=header))
    events = client.wait_for(*(check.check_id for check in checks.values()))
    traces = {header: events[check.check_id].envelope.traceparent for header, check in checks.items()}
    assert traces == {given: given, None: None, "malformed": None}
    assert "traceparent" not in events[checks[None].check_id].raw


def test_no_span_is_made_without_an_exporter() -> None:
    """No exporter is imported either; an exporter that is not supported is logged."""
    program = (
        "import sys, worker.client\n"
        "from worker.telemetry.tracing import exported_traces, span, traceparent\n"
        "with exported_traces(), span('nothing'):\n"
        "    assert traceparent() is None\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry.exporter')]"
    )
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    for variables in (
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_TRACES_EXPORTER": "console"},
    ):
        finished = subprocess.run(
            [sys.executable, "-c", program],
            env={**inherited, **variables},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr
        assert ("traces_not_exported" in finished.stdout + finished.stderr) == (
            variables.get("OTEL_TRACES_EXPORTER") == "console"
        )
