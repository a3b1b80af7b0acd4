"""The metrics and their reference page."""

from itertools import permutations
from pathlib import Path
from typing import get_args

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from deploy.generators.metrics_page import DOCUMENTED, LABELS, page
from detector.policy import VerdictName
from worker.contract.messages import QUEUES, RejectionReason
from worker.telemetry import metrics

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "metrics.md"


def test_the_page_of_metrics_is_up_to_date() -> None:
    """`make reference` writes it."""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_every_metric_of_a_worker_is_documented() -> None:
    """The page lists the metrics of the registry with their types, except those of the client library."""
    served = {
        (family.name + ("_total" if family.type == "counter" else ""), family.type)
        for family in text_string_to_metric_families(generate_latest(metrics.REGISTRY).decode())
        if not family.name.startswith("process_") and not family.name.endswith("_created")
    }
    assert served == {(row.name, row.kind) for row in metrics.DOCUMENTED}


def test_a_worker_serves_fewer_than_500_samples() -> None:
    """With every value of every label, as the page says; the page lists exactly the labels in use."""
    for queue in (*QUEUES, "other"):
        for verdict in get_args(VerdictName):
            metrics.CHECKS.labels(queue, verdict, "")
        for reason in get_args(RejectionReason):
            metrics.CHECKS.labels(queue, "rejected", reason)
    for serving, shadow in permutations(get_args(VerdictName), 2):
        metrics.SHADOW_DISAGREEMENTS.labels(serving, shadow)
    samples = [
        sample
        for family in metrics.REGISTRY.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    ]
    assert len(samples) < 500
    assert {label for row in DOCUMENTED for label in row.labels} == LABELS.keys()
