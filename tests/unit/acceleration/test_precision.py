"""Precision: bfloat16 only where the device has instructions for it."""

import pytest
import torch

from detector.acceleration import precision
from detector.benchmark.speed import usual_dtypes

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("features", "computes"),
    [
        ({"avx2", "fma"}, False),
        ({"avx512f"}, False),
        ({"avx512_bf16"}, True),
        ({"bf16"}, True),
        (set(), False),
    ],
)
def test_a_cpu_computes_in_bfloat16_if_it_has_the_instructions(
    monkeypatch: pytest.MonkeyPatch, features: set[str], *, computes: bool
) -> None:
    """On other CPUs training steps and benchmarks use float32."""
    monkeypatch.setattr(precision, "processor_features", lambda: frozenset(features))
    assert precision.computes_bfloat16(CPU) is computes
    with precision.training_precision(CPU):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if computes else torch.float32)
    assert usual_dtypes("cpu") == (("float32", "bfloat16") if computes else ("float32",))


def test_other_devices_compute_in_float32() -> None:
    """Metal computes in float32."""
    assert not precision.computes_bfloat16(torch.device("mps"))
