"""The HTTP server for metrics and probes."""

import socket
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Gauge

from tests.scraping import Served
from worker.settings import Settings
from worker.telemetry.http import Answer, Endpoints, EndpointsUnavailableError


@pytest.fixture
def endpoints() -> Iterator[Endpoints]:
    """Provide a server with one metric, a probe that passes and one that fails."""
    registry = CollectorRegistry()
    Gauge("figure", "A figure.", registry=registry).set(4)
    probes = {
        "/livez": lambda: Answer(ok=True, reason="alive", figures={"seconds": 2}),
        "/readyz": lambda: Answer(ok=False, reason="no broker", figures={}),
    }
    with Endpoints("127.0.0.1", 0, registry, probes) as served:
        yield served


def test_metrics_and_probes_are_served(endpoints: Endpoints) -> None:
    """Metrics in Prometheus' format, probes as JSON with 200 or 503, any other path is 404."""
    served = Served(endpoints.port)
    assert served.figure("figure") == 4
    assert served.probe("/livez") == (200, {"ok": True, "reason": "alive", "seconds": 2})
    assert served.probe("/readyz") == (503, {"ok": False, "reason": "no broker"})
    assert served.get("/other") == (404, "paths: /metrics, /livez, /readyz\n")


def test_every_address_is_served_by_default() -> None:
    """IPv4 and, where the machine has it, IPv6: a cluster may have either."""
    host = Settings().http_host
    with Endpoints(
        host, 0, CollectorRegistry(), {"/livez": lambda: Answer(ok=True, reason="alive", figures={})}
    ) as served:
        for address in ("127.0.0.1", *(["::1"] if socket.has_dualstack_ipv6() else [])):
            with socket.create_connection((address, served.port), timeout=5) as connection:
                connection.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
                assert b" 200 " in connection.recv(100)


def test_a_machine_without_ipv6_serves_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default is every address that there is."""
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    with (
        Endpoints("::", 0, CollectorRegistry(), {}) as served,
        socket.create_connection(("127.0.0.1", served.port), timeout=5),
    ):
        pass


def test_an_idle_client_does_not_delay_others(endpoints: Endpoints) -> None:
    """A connection without a request occupies a thread of its own."""
    with socket.create_connection(("127.0.0.1", endpoints.port)):
        assert Served(endpoints.port).status("/livez") == 200


def test_a_taken_port_is_reported(endpoints: Endpoints) -> None:
    """The error names host and port."""
    with pytest.raises(EndpointsUnavailableError, match=f"127.0.0.1:{endpoints.port}"):
        Endpoints("127.0.0.1", endpoints.port, CollectorRegistry(), {})
