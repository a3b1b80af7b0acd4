"""Memory of the device that ran out, told from other faults, and freed."""

import traceback


def free_memory_after(error: Exception) -> bool:
    """Say whether an error means that the device's memory ran out; if so, give back what nobody uses.

    What the failed pass had allocated is held by the frames of its traceback, which are cleared first. Other
    processes on the same device may take what is given back.
    """
    if not _ran_out(error):
        return False
    import torch

    traceback.clear_frames(error.__traceback__)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
    return True


def _ran_out(error: Exception) -> bool:
    if isinstance(error, MemoryError):
        return True
    # torch.OutOfMemoryError is one; Metal, cuDNN and the allocator of the CPU raise a plain one.
    return isinstance(error, RuntimeError) and any(
        words in str(error).lower() for words in ("out of memory", "can't allocate memory", "alloc_failed")
    )
