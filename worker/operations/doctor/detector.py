"""Diagnose the detector: the integrity of its bundle, the presence of its device."""

from collections.abc import Iterator

from detector.bundle.files import BundleError, resolve
from worker.operations.doctor.diagnosis import Diagnosis, fault, ok, warning
from worker.settings import Settings


def diagnose_detector(settings: Settings) -> Iterator[Diagnosis]:
    """Yield the diagnoses."""
    yield _bundle(settings)
    yield _device(settings)


def _bundle(settings: Settings) -> Diagnosis:
    name = "bundle"
    try:
        bundle = resolve(settings.bundle, digest=settings.bundle_digest)
    except BundleError as error:
        return fault(
            name,
            f"{settings.bundle}: {error.reason}",
            f"No worker starts: {error}",
            "Set DNF_BUNDLE (and DNF_BUNDLE_DIGEST) to another bundle, or restore this one.",
        )
    manifest = bundle.manifest
    pinned = " as pinned" if settings.bundle_digest else ""
    return ok(
        name,
        f"{manifest.name} {manifest.version}, digest {bundle.digest[:12]}{pinned}, every file verified",
    )


def _device(settings: Settings) -> Diagnosis:
    name = "device"
    import torch

    kind, _, number = settings.device.partition(":")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    observed = f"{settings.device}; {gpus} GPUs, {torch.get_num_threads()} CPU threads"
    if kind == "cuda" and (gpus == 0 or int(number or 0) >= gpus):
        return fault(
            name,
            observed,
            "No worker starts: this GPU does not exist, or this build of torch is for CPUs.",
            "Set DNF_DEVICE=auto, or install a driver and a CUDA build of torch.",
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        return fault(name, observed, "No worker starts: there is no such device.", "Set DNF_DEVICE=auto.")
    if kind not in {"auto", "cpu", "cuda", "mps"}:
        return fault(
            name,
            observed,
            "No worker starts: there is no such device.",
            "Set DNF_DEVICE to auto, cpu, cuda, cuda:N or mps.",
        )
    if settings.dtype == "bfloat16" and kind == "mps":
        return warning(
            name, observed, "bfloat16 has not been measured on this device.", "Set DNF_DTYPE=auto."
        )
    return ok(name, observed)
