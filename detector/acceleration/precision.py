"""Precision and memory layout: bfloat16 where a device has instructions for it, float32 elsewhere."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Linux's names of the instruction sets: two on x86-64, one on Arm.
_BFLOAT16_INSTRUCTIONS = {"avx512_bf16", "amx_bf16", "bf16"}


def computes_bfloat16(device: "torch.device") -> bool:
    """Return whether a CPU or CUDA device has bfloat16 instructions; False for every other device.

    Without them bfloat16 is emulated and several times slower than float32.
    """
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and not _BFLOAT16_INSTRUCTIONS.isdisjoint(processor_features())


def training_precision(device: "torch.device") -> "torch.autocast":
    """Return the context of a training step's forward pass: bfloat16 where the device computes in it."""
    import torch

    return torch.autocast(device.type, torch.bfloat16, enabled=computes_bfloat16(device))


def training_layout(device: str) -> "torch.memory_format":
    """Return the weights' memory layout in training: channels last on CUDA, contiguous elsewhere."""
    import torch

    return torch.channels_last if torch.device(device).type == "cuda" else torch.contiguous_format


def processor_features() -> frozenset[str]:
    """Return the CPU features that Linux lists; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    # "flags" on x86-64, "Features" on Arm.
    found = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(found, "").split())
