"""The metrics: their names, their page, and a GPU's figures."""

from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from deploy.generators.metrics_page import LABELS, page
from detector.policy import VerdictName
from worker.contract.messages import QUEUES, RejectionReason
from worker.operations.exporter import collector as exporter
from worker.telemetry import gpu_metrics, metrics
from worker.telemetry.gpu_metrics import GpuCollector

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"


def test_the_page_of_metrics_is_that_of_the_code() -> None:
    """`make metrics` writes it."""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_every_metric_of_a_worker_is_documented_with_its_kind() -> None:
    """What the registry serves and what the page says are the same, the client library's own aside."""
    served = {
        (family.name + ("_total" if family.type == "counter" else ""), family.type)
        for family in text_string_to_metric_families(generate_latest(metrics.REGISTRY).decode())
        if not family.name.startswith("process_") and not family.name.endswith("_created")
    }
    assert served == {(row.name, row.kind) for row in metrics.DOCUMENTED}


def test_no_label_takes_more_values_than_an_operator_can_read() -> None:
    """With every value of every label a worker serves fewer than 500 samples, as the page says.

    The page has every label that there is, and no other.
    """
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
    documented = [*metrics.DOCUMENTED, *gpu_metrics.DOCUMENTED, *exporter.DOCUMENTED]
    assert {label for row in documented for label in row.labels} == LABELS.keys()


class _NvmlError(Exception):
    """The management library's error."""


def test_a_gpu_that_does_not_answer_has_no_figure_and_the_others_have() -> None:
    """Three GPUs, the second lost: memory in bytes and load as a share, by the driver's number."""

    def handle(number: int) -> int:
        if number == 1:
            raise _NvmlError
        return number

    library: Any = SimpleNamespace(
        NVMLError=_NvmlError,
        nvmlDeviceGetCount=lambda: 3,
        nvmlDeviceGetHandleByIndex=handle,
        nvmlDeviceGetMemoryInfo=lambda device: SimpleNamespace(used=(device + 1) << 30),
        nvmlDeviceGetUtilizationRates=lambda device: SimpleNamespace(gpu=25 * (device + 1)),
    )
    samples = {
        (sample.name, sample.labels["gpu"]): sample.value
        for family in GpuCollector(library).collect()
        for sample in family.samples
    }
    assert samples == {
        ("dnf_gpu_memory_used_bytes", "0"): 1 << 30,
        ("dnf_gpu_memory_used_bytes", "2"): 3 << 30,
        ("dnf_gpu_utilization_ratio", "0"): 0.25,
        ("dnf_gpu_utilization_ratio", "2"): 0.75,
    }
