"""A real Prometheus scrapes a real worker, exporter and relay for dashboard, alerts and autoscaler."""

import math
import re
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import helm_python as helm
import pytest
import yaml

from tests.conftest import RunningWorker, settings_of
from tests.deciding import take_decision
from tests.deploy.documents import ALERTS, CHART, PROMETHEUS, queries, read_yaml
from tests.deploy.prometheus import SERVER, Prometheus
from tests.relay_process import RelayProcess
from worker.client import Client, ConsumedDecision
from worker.database.database import Database
from worker.embedded.guarded_process import GuardedProcess
from worker.embedded.postgres import PostgreSQL
from worker.embedded.services import EmbeddedServices
from worker.embedded.startup import HOST, free_ports
from worker.settings import Settings

#: Panels that are empty for a CPU worker without a shadow bundle and without retries.
EMPTY = {
    "GPU utilisation",
    "GPU memory",
    "Retries, by reason",
    "Shadow: score difference",
    "Shadow: share of different verdicts",
}

GOOD, MISSING = 24, 4


@dataclass(frozen=True)
class Observed:
    """A worker, an exporter, a relay, and a Prometheus that scrapes them, if the machine has one."""

    worker_port: int
    exporter_port: int
    relay_port: int
    prometheus: Prometheus | None

    def page(self, port: int) -> str:
        """Return the text of /metrics."""
        with urllib.request.urlopen(f"http://{HOST}:{port}/metrics", timeout=10) as answer:
            return str(answer.read(), "utf-8")


@pytest.fixture(scope="module")
def observed(
    services: EmbeddedServices,
    service_environment: dict[str, str],
    *,
    postgres: PostgreSQL,
    make_picture: Callable[..., bytes],
    wait_until: Callable[..., None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Observed]:
    """Provide a scraped fleet with verdicts, rejections, a dead letter, a decision and a consumer."""
    folder = tmp_path_factory.mktemp("observed")
    worker_port, exporter_port, relay_port = free_ports(3)
    services.seaweedfs.client().put_object(Bucket=services.bucket, Key="scrape.jpg", Body=make_picture(3))
    with ExitStack() as running:
        environment = {**service_environment, "PYTHONPATH": ":".join(sys.path)}
        exporter = GuardedProcess(
            [sys.executable, "-m", "worker.cli", "exporter"],
            log=folder / "exporter.log",
            environment={**environment, "DNF_HTTP_PORT": str(exporter_port)},
        )
        running.callback(exporter.stop)
        worker = RunningWorker(
            {**service_environment, "DNF_HTTP_PORT": str(worker_port)},
            folder / "worker.log",
            "tests.workers.null_worker",
        )
        running.callback(worker.stop)
        worker.start()
        postgres.create_database("scraped", template="migrated")
        running.callback(postgres.drop_database, "scraped")
        reviews = {**service_environment, **postgres.environment("scraped"), "DNF_REVIEW_UNDO_SECONDS": "0"}
        relay = RelayProcess({**reviews, "DNF_HTTP_PORT": str(relay_port)}, folder / "relay.log")
        running.callback(relay.kill)
        relay.start()
        relay.wait_for_event("relay_ready")
        ports = {"dnf-worker": worker_port, "dnf-exporter": exporter_port, "dnf-relay": relay_port}
        found = Observed(worker_port, exporter_port, relay_port, _prometheus(folder, ports))
        if server := found.prometheus:
            running.callback(server.process.stop)
            wait_until(lambda: set(server.targets().values()) == {"up"}, "all are scraped")
        _send(service_environment, services.bucket, worker)
        _decide(settings_of(reviews), wait_until)
        yield found


def _prometheus(folder: Path, ports: dict[str, int]) -> Prometheus | None:
    """Start a Prometheus with the shipped configuration, these targets and intervals of one second."""
    if SERVER is None:
        return None
    configuration = read_yaml(PROMETHEUS)
    configuration["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    configuration["rule_files"] = [str(ALERTS)]
    configuration["scrape_configs"] = [
        {"job_name": job["job_name"], "static_configs": [{"targets": [f"{HOST}:{ports[job['job_name']]}"]}]}
        for job in configuration["scrape_configs"]
        if job["job_name"] in ports
    ]
    return Prometheus(folder, configuration)


def _send(environment: dict[str, str], bucket: str, worker: RunningWorker) -> None:
    """Submit good pictures, missing ones and one check that is dead-lettered; consume every event."""
    with Client(settings_of(environment)) as client:
        ids = [client.submit(bucket, "scrape.jpg") for _ in range(GOOD)]
        ids += [client.submit(bucket, "none.jpg", queue="image-checks.urgent") for _ in range(MISSING)]
        client.submit(bucket, "scrape.jpg", policy="of-another-fleet")
        client.wait_for(*ids, timeout_seconds=120)
        worker.wait_for_event("check_dead_lettered")
        for delivered in client.verdicts("moderation", follow=False):
            delivered.ack()


def _decide(settings: Settings, wait_until: Callable[..., None]) -> None:
    """Take a decision and read it as a consumer."""
    with Database.open(settings.database) as database, Client(settings) as client:
        take_decision(database, settings.review)
        seen: list[ConsumedDecision] = []
        wait_until(lambda: seen or seen.extend(client.decisions("platform", follow=False)), "a decision")
        seen[0].ack()


def test_the_dashboards_queries_return_data(observed: Observed, wait_until: Callable[..., None]) -> None:
    """Every panel's query parses, and those for a CPU worker return numbers within seconds.

    Without a Prometheus on this machine: each metric that they read is on one of the three pages.
    """
    wanted = [(title, query) for title, query in queries() if title not in EMPTY]
    assert len(wanted) > 40
    prometheus = observed.prometheus
    if prometheus is None:
        pages = "".join(
            observed.page(port)
            for port in (observed.worker_port, observed.exporter_port, observed.relay_port)
        )
        exposed = set(re.findall(r"^([a-z_]+)[ {]", pages, flags=re.MULTILINE))
        for title, query in wanted:
            assert set(re.findall(r"\b(?:dnf|process)_[a-z0-9_]+\b", query)) <= exposed, title
        return
    for title, query in wanted:
        wait_until(lambda query=query: numbers(prometheus, query), f"{title} has data: {query}")
    for _, query in queries():
        prometheus.query(query)
    assert prometheus.targets() == {"dnf-worker": "up", "dnf-exporter": "up", "dnf-relay": "up"}


def numbers(prometheus: Prometheus, query: str) -> list[float]:
    """Return the finite numbers that a query gives."""
    values = [float(sample["value"][1]) for sample in prometheus.query(query)]
    return [value for value in values if math.isfinite(value)]


def test_the_metrics_match_the_submitted_checks(observed: Observed, wait_until: Callable[..., None]) -> None:
    """24 judged, 4 missing, one dead letter, all events read and acknowledged by one group."""
    prometheus = observed.prometheus
    if prometheus is None:
        page = observed.page(observed.exporter_port)
        assert re.search(r"^dnf_dead_letter_stream_length 1\.0$", page, flags=re.MULTILINE)
        assert re.search(r'^dnf_verdict_stream_pending\{group="moderation"\} 0\.0$', page, flags=re.MULTILINE)
        return
    expected = {
        'sum(dnf_checks_total{outcome=~"real|review|generated"})': GOOD,
        'sum(dnf_checks_total{queue="image-checks.urgent",outcome="rejected",reason="missing"})': MISSING,
        "sum(dnf_score_count)": GOOD,
        'dnf_verdict_stream_lag{group="moderation"}': 0,
        "dnf_dead_letter_stream_length": 1,
        "dnf_workers_alive": 1,
    }
    for query, number in expected.items():
        wait_until(lambda query=query, number=number: numbers(prometheus, query) == [number], query)


def test_the_rules_evaluate_and_only_the_dead_letter_fires(
    observed: Observed, wait_until: Callable[..., None]
) -> None:
    """Every rule evaluates without error on real data, and nothing critical fires for a healthy fleet.

    Without a Prometheus on this machine: the page has what the alert of dead letters reads.
    """
    prometheus = observed.prometheus
    if prometheus is None:
        assert "dnf_dead_letter_stream_length 1.0" in observed.page(observed.exporter_port)
        return

    def rules() -> list[dict[str, Any]]:
        return [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]

    wait_until(lambda: all(rule["health"] == "ok" for rule in rules()), "every rule was evaluated")
    assert {rule["name"] for rule in rules() if rule["state"] == "firing"} <= {"DnfDeadLetters"}
    assert len(rules()) == len([rule for group in read_yaml(ALERTS)["groups"] for rule in group["rules"]])


def test_each_query_of_the_autoscaler_returns_one_number(
    observed: Observed, wait_until: Callable[..., None]
) -> None:
    """KEDA refuses several series; without work both numbers are zero.

    Without a Prometheus on this machine: each metric that the queries read is on the exporter's page.
    """
    with helm.Chart.load(CHART) as chart:
        texts = chart.render({"autoscaling": {"enabled": True}}, name="prod", namespace="moderation")
    (scaled,) = yaml.safe_load_all(texts["dnf-moderation/templates/scaledobject.yaml"])
    prometheus = observed.prometheus
    for trigger in scaled["spec"]["triggers"]:
        query = trigger["metadata"]["query"]
        if prometheus is None:
            for name in re.findall(r"\bdnf_[a-z0-9_]+\b", query):
                assert name in observed.page(observed.exporter_port)
        else:
            wait_until(lambda query=query: numbers(prometheus, query) == [0], query)
