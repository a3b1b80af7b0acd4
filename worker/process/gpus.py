"""Which GPUs this machine lets its worker processes see, without loading torch here."""

import os
import subprocess
import sys
from pathlib import Path

# NVIDIA's driver, on Linux and within Windows' subsystem for it.
_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
_ASKED = "import torch; print(torch.cuda.device_count())"
_ASKED_SECONDS = 120.0


def visible_gpus() -> list[str]:
    """Return one value of CUDA_VISIBLE_DEVICES for each GPU, in order; empty when there is none.

    An existing CUDA_VISIBLE_DEVICES is split; its entries may be indices, UUIDs or MIG instances. Otherwise
    NVIDIA's management library names the GPUs, or, where `nvidia-ml-py` is not installed, a short-lived
    process that loads torch counts them. With MIG on, each instance must be named in CUDA_VISIBLE_DEVICES.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return _split(named)
    try:
        import pynvml  # type: ignore[import-untyped]
    except ImportError:
        return [str(index) for index in range(_counted_by_torch())]
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        # CUDA's own order of indices is another one than the driver's.
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return [str(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles]
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()


def _split(named: str) -> list[str]:
    """Split as CUDA does: everything from the first entry on that is no device is invisible."""
    gpus: list[str] = []
    for part in named.split(","):
        entry = part.strip()
        if not entry or entry.startswith("-") or entry in gpus:
            break
        gpus.append(entry)
    return gpus


def _counted_by_torch() -> int:
    if not any(driver.exists() for driver in _DRIVERS):
        return 0
    asked = subprocess.run(  # noqa: S603 - a constant command
        [sys.executable, "-c", _ASKED], capture_output=True, text=True, timeout=_ASKED_SECONDS, check=False
    )
    return int(asked.stdout) if asked.returncode == 0 else 0
