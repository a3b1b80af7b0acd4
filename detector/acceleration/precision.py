"""Which devices compute in bfloat16; the others are several times slower in it than in float32."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# What Linux calls the instructions: x86-64's two sets of them, and Arm's.
_INSTRUCTIONS = {"avx512_bf16", "amx_bf16", "bf16"}


def computes_bfloat16(device: "torch.device") -> bool:
    """Return whether a CPU, or a CUDA device, has instructions for bfloat16; False for any other."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and not _INSTRUCTIONS.isdisjoint(processor_features())


def training_precision(device: "torch.device") -> "torch.autocast":
    """Return the context of a training step's forward pass: bfloat16 where the device computes in it."""
    import torch

    return torch.autocast(device.type, torch.bfloat16, enabled=computes_bfloat16(device))


def training_layout(device: str) -> "torch.memory_format":
    """Return how a network that trains keeps its weights: channels last for tensor cores, else as usual."""
    import torch

    return torch.channels_last if torch.device(device).type == "cuda" else torch.contiguous_format


def processor_features() -> frozenset[str]:
    """Return the features of this machine's CPU as Linux names them; none on another system."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    # "flags" on x86-64, "Features" on Arm.
    found = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(found, "").split())
