"""Device memory: pictures moved to it, and recovery after it ran out."""

import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def to_device(views: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """Move views to a device; to CUDA asynchronously, through pinned memory."""
    if device.type == "cuda":
        return views.pin_memory().to(device, non_blocking=True)
    return views.to(device)


def free_memory_after(error: Exception) -> bool:
    """Return whether an error means that the device ran out of memory; if so, release its unused memory.

    The frames of the traceback keep the tensors of the failed pass alive, so they are cleared first. Other
    processes on the device can use what is released.
    """
    if not _out_of_memory(error):
        return False
    import torch

    traceback.clear_frames(error.__traceback__)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
    return True


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError):
        return True
    # torch.OutOfMemoryError is a RuntimeError; Metal, cuDNN and the CPU allocator raise a plain one.
    return isinstance(error, RuntimeError) and any(
        words in str(error).lower() for words in ("out of memory", "can't allocate memory", "alloc_failed")
    )
