"""The detector: its bundle whole, its device there."""

from collections.abc import Iterator

from detector.bundle.files import BundleError, resolve
from worker.operations.doctor.check import Check, fault, ok, warning
from worker.settings import Settings


def check_detector(settings: Settings) -> Iterator[Check]:
    """Yield the checks."""
    yield _bundle(settings)
    yield _device(settings)


def _bundle(settings: Settings) -> Check:
    name = "bundle"
    try:
        bundle = resolve(settings.bundle)
    except BundleError as error:
        return fault(
            name,
            f"{settings.bundle}: {error.reason}",
            str(error),
            "DNF_BUNDLE, or put the bundle there again: no worker starts with it",
        )
    manifest = bundle.manifest
    return ok(name, f"{manifest.name} {manifest.version}, digest {bundle.digest[:12]}, every file verified")


def _device(settings: Settings) -> Check:
    name = "device"
    import torch

    kind, _, number = settings.device.partition(":")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    seen = f"{settings.device}; {gpus} GPUs, {torch.get_num_threads()} threads of a CPU"
    if kind == "cuda" and (gpus == 0 or int(number or 0) >= gpus):
        return fault(
            name,
            seen,
            "There is no such GPU, or this build of torch is for CPUs: no worker starts.",
            "DNF_DEVICE=auto, or a driver and a CUDA build of torch",
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        return fault(name, seen, "There is no such device: no worker starts.", "DNF_DEVICE=auto")
    if kind not in {"auto", "cpu", "cuda", "mps"}:
        return fault(name, seen, "There is no such device.", "DNF_DEVICE=auto, cpu, cuda, cuda:N or mps")
    if settings.dtype == "bfloat16" and kind == "mps":
        return warning(name, seen, "bfloat16 is not measured on this device.", "DNF_DTYPE=auto")
    return ok(name, seen)
