"""Memory and load of the GPUs, as NVIDIA's management library tells them."""

from collections.abc import Iterable
from importlib import import_module
from typing import Any, Self

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from worker.telemetry.metrics import Documented

DOCUMENTED = [
    Documented(
        "dnf_gpu_memory_used_bytes",
        "gauge",
        "Memory in use on the GPU, by whomever; only with the `gpu` extra and a driver.",
        ("gpu",),
    ),
    Documented(
        "dnf_gpu_utilization_ratio", "gauge", "Share of the last second that the GPU worked, 0..1.", ("gpu",)
    ),
]


class GpuCollector(Collector):
    """Asks the driver at each scrape; a GPU that does not answer has no figure."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml

    @classmethod
    def found(cls) -> Self | None:
        """Return a collector, or None without the library, a driver or a GPU."""
        try:
            pynvml: Any = import_module("pynvml")
        except ImportError:
            return None
        try:
            pynvml.nvmlInit()
            if not pynvml.nvmlDeviceGetCount():
                return None
        except pynvml.NVMLError:
            return None
        return cls(pynvml)

    def collect(self) -> Iterable[Metric]:
        """Yield the figures of each GPU of this host, numbered as the driver does."""
        memory, load = (GaugeMetricFamily(row.name, row.meaning, labels=row.labels) for row in DOCUMENTED)
        for number in range(self._nvml.nvmlDeviceGetCount()):
            try:
                device = self._nvml.nvmlDeviceGetHandleByIndex(number)
                memory.add_metric([str(number)], self._nvml.nvmlDeviceGetMemoryInfo(device).used)
                load.add_metric([str(number)], self._nvml.nvmlDeviceGetUtilizationRates(device).gpu / 100)
            except self._nvml.NVMLError:
                continue
        return [memory, load]

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that registration asks nothing of the driver."""
        return []
