"""Throughput, time of each stage, memory and arithmetic; and a comparison with the published pipeline."""

import io
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from detector.acceleration.precision import computes_bfloat16
from detector.bundle.files import Bundle
from detector.bundle.manifest import needs_unet
from detector.detector import Detector, Dtype, best_device
from detector.images.decode import decode

if TYPE_CHECKING:
    from torch import nn

_SIDE = 512

# Dense bfloat16 peaks of tensor cores in TFLOP/s, from data sheets; the longest matching name counts.
PEAK_TFLOPS = {
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "A10": 125.0,
    "A10G": 70.0,
    "L40S": 362.0,
    "L4": 121.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
}

#: Encoded pictures to logits, in their order.
Pipeline = Callable[[Sequence[bytes]], list[float]]


@dataclass(frozen=True)
class Measurement:
    """One row of the benchmark: medians over rounds."""

    device: str
    dtype: str
    batch_size: int
    acceleration: str
    #: Milliseconds per picture in each stage.
    decode_ms: float
    prepare_ms: float
    dnf_ms: float
    classify_ms: float
    pictures_per_second: float
    #: Operations of the networks in 1e12 per second, over the time of all stages.
    tflops: float
    #: Share of the device's peak, 0..1; None where that is unknown.
    peak_share: float | None
    #: Operations of the feature alone in 1e12 per second of its own stage, and their share of the peak.
    dnf_tflops: float
    dnf_peak_share: float | None
    #: Peak memory in RAM; on a CUDA device, in its own memory.
    memory_bytes: int


@dataclass(frozen=True)
class Comparison:
    """This detector compared with another pipeline of the same networks."""

    pictures: int
    #: Median seconds per picture, by the clock and of processor time.
    reference_seconds: float
    ours_seconds: float
    reference_cpu_seconds: float
    ours_cpu_seconds: float
    #: Ratio of wall-clock times in each round.
    ratios: tuple[float, ...]
    #: Median ratio of processor times, which other processes disturb less.
    cpu_ratio: float
    #: Over all pictures.
    largest_logit_difference: float

    @property
    def ratio(self) -> float:
        """How many times faster this detector is: the median over rounds."""
        return statistics.median(self.ratios)


def sample_files(count: int) -> list[bytes]:
    """Return JPEG files of 512 x 512 pixels with smooth areas, edges and grain, the same in every run."""
    random = np.random.default_rng(0)
    files: list[bytes] = []
    for _ in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC), dtype=np.float64)
        grainy = np.clip(smooth + random.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(grainy).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def measure(
    bundle: Bundle,
    *,
    devices: Sequence[str] = ("auto",),
    dtypes: Sequence[Dtype] = (),
    batch_sizes: Sequence[int] = (),
    rounds: int = 3,
    peak_tflops: float | None = None,
    compiled: bool = False,
) -> list[Measurement]:
    """Measure the detector, `compiled` or not, for each device, dtype and batch size.

    `dtypes` defaults to those with instructions on the device, `batch_sizes` to 1, 4 and 16 on a CPU, and to
    1, 8 and what fits in its free memory on a CUDA device.
    """
    flops, dnf_flops = flops_per_picture(bundle), flops_of_features(bundle)
    rows: list[Measurement] = []
    for device in devices:
        for dtype in dtypes or usual_dtypes(device):
            detector = Detector.load(bundle, device=device, dtype=dtype, compiled=compiled)
            sizes = batch_sizes or _usual_batch_sizes(detector)
            rows += [_row(detector, size, rounds, (flops, dnf_flops), peak_tflops) for size in sizes]
    return rows


def usual_dtypes(device: str) -> tuple[Dtype, ...]:
    """Return float32 and, where the device has instructions for it, bfloat16; the fastest is last."""
    import torch

    actual = torch.device(best_device() if device == "auto" else device)
    return ("float32", "bfloat16") if computes_bfloat16(actual) else ("float32",)


def _row(
    detector: Detector, batch_size: int, rounds: int, flops: tuple[int, int], peak_tflops: float | None
) -> Measurement:
    files = sample_files(batch_size)
    detector.warm_up(batch_size)
    reset_peak_memory(detector.device)
    stages = np.array([_round(detector, files) for _ in range(rounds)]) / batch_size
    decode_ms, prepare_ms, dnf_ms, classify_ms = (float(value) for value in np.median(stages, axis=0))
    pictures_per_second = float(1000 / np.median(stages.sum(axis=1)))
    tflops, dnf_tflops = flops[0] * pictures_per_second / 1e12, flops[1] / dnf_ms / 1e9
    peak = peak_tflops or known_peak_tflops(device_name(detector.device))
    return Measurement(
        device=detector.device,
        dtype=detector.dtype,
        batch_size=batch_size,
        acceleration=detector.acceleration,
        decode_ms=decode_ms,
        prepare_ms=prepare_ms,
        dnf_ms=dnf_ms,
        classify_ms=classify_ms,
        pictures_per_second=pictures_per_second,
        tflops=tflops,
        peak_share=tflops / peak if peak and detector.dtype == "bfloat16" else None,
        dnf_tflops=dnf_tflops,
        dnf_peak_share=dnf_tflops / peak if peak and detector.dtype == "bfloat16" else None,
        memory_bytes=peak_memory_bytes(detector.device),
    )


def _round(detector: Detector, files: list[bytes]) -> tuple[float, float, float, float]:
    began = time.perf_counter()
    pictures = [decode(data) for data in files]
    decoded = time.perf_counter()
    prepared = [detector.prepare(picture) for picture in pictures]
    ready = time.perf_counter()
    finding = detector.examine(prepared)[0]
    return (decoded - began) * 1000, (ready - decoded) * 1000, finding.dnf_ms, finding.classify_ms


def our_pipeline(detector: Detector, pool: Executor, *, at_once: int = 4) -> Pipeline:
    """Return the detector as a pipeline that decodes the next `at_once` pictures while the networks run."""

    def logits(files: Sequence[bytes]) -> list[float]:
        prepared = list(pool.map(lambda data: detector.prepare(decode(data)), files[:at_once]))
        results: list[float] = []
        for end in range(at_once, len(files) + at_once, at_once):
            waiting = [pool.submit(lambda d: detector.prepare(decode(d)), d) for d in files[end:][:at_once]]
            results += [finding.logit for finding in detector.examine(prepared)]
            prepared = [future.result() for future in waiting]
        return results

    return logits


def compare(
    reference: Pipeline,
    ours: Pipeline,
    files: Sequence[bytes],
    *,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    processor_clock: Callable[[], float] = time.process_time,
) -> Comparison:
    """Run both pipelines on the same files, alternating within each round, after a warm-up.

    Other load on the machine affects both alike, so the ratio is more reliable than either time.
    """
    expected, actual = reference(files), ours(files)
    seconds: list[tuple[float, float]] = []
    cpu_seconds: list[tuple[float, float]] = []
    for number in range(rounds):
        wall, processor = [0.0, 0.0], [0.0, 0.0]
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            began, processor_began = clock(), processor_clock()
            (reference, ours)[side](files)
            wall[side] = (clock() - began) / len(files)
            processor[side] = (processor_clock() - processor_began) / len(files)
        seconds.append((wall[0], wall[1]))
        cpu_seconds.append((processor[0], processor[1]))
    reference_seconds, ours_seconds = (statistics.median(side) for side in zip(*seconds, strict=True))
    reference_cpu, ours_cpu = (statistics.median(side) for side in zip(*cpu_seconds, strict=True))
    return Comparison(
        pictures=len(files),
        reference_seconds=reference_seconds,
        ours_seconds=ours_seconds,
        reference_cpu_seconds=reference_cpu,
        ours_cpu_seconds=ours_cpu,
        ratios=tuple(theirs / own for theirs, own in seconds),
        cpu_ratio=statistics.median(theirs / own for theirs, own in cpu_seconds),
        largest_logit_difference=max(abs(p - o) for p, o in zip(expected, actual, strict=True)),
    )


def flops_per_picture(bundle: Bundle) -> int:
    """Count the floating-point operations of both networks on all views and estimates of one picture."""
    import torch

    from detector.networks.classifiers import build_classifier

    manifest = bundle.manifest
    size = manifest.preprocessing.size
    classifier = build_classifier(manifest.classifier).eval()
    one = count_flops(classifier, torch.zeros(1, manifest.classifier.in_channels, size, size))
    return one * manifest.preprocessing.views + flops_of_features(bundle)


def flops_of_features(bundle: Bundle) -> int:
    """Count the floating-point operations of the U-Net on one picture, with all estimates.

    They are those of all views, or of the one that is shown where the classifier does not take the feature.
    """
    import torch

    from detector.networks.unet import load_unet

    if not bundle.unet_folder:
        return 0
    manifest = bundle.manifest
    size, dnf = manifest.preprocessing.size, manifest.dnf
    unet = load_unet(bundle.unet_folder).to("meta")
    picture = torch.zeros(1, 3, size, size, device="meta")
    passes = len(dnf.timesteps) if dnf.variant == "first" else dnf.steps
    one = count_flops(unet, picture, torch.zeros(1, dtype=torch.long, device="meta"))
    return one * passes * (manifest.preprocessing.views if needs_unet(manifest.feature) else 1)


def count_flops(network: "nn.Module", *inputs: Any) -> int:
    """Count the operations of convolutions and matrix products in one pass; a multiply-add is two."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(*inputs)
    return int(counter.get_total_flops())


def known_peak_tflops(name: str) -> float | None:
    """Return the bfloat16 peak of the device called `name` in TFLOP/s, or None if it is not listed."""
    matching = [known for known in PEAK_TFLOPS if set(known.split()) <= set(name.replace("-", " ").split())]
    return PEAK_TFLOPS[max(matching, key=len)] if matching else None


def device_name(device: str) -> str:
    """Return the name of a CUDA device, or of the processor."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return device


def reset_peak_memory(device: str) -> None:
    """Reset the measured peak, where the system allows it."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes(device: str = "cpu") -> int:
    """Return the peak memory since the reset: in RAM, or on a CUDA device in its own memory."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _usual_batch_sizes(detector: Detector) -> tuple[int, ...]:
    if not detector.device.startswith("cuda"):
        return (1, 4, 16)
    import torch

    from detector.acceleration.cuda_graphs import fitting_batch

    peaks: list[int] = []
    for size in (1, 5):
        detector.warm_up(size)  # the first pass may benchmark algorithms
        reset_peak_memory(detector.device)
        detector.warm_up(size)
        peaks.append(peak_memory_bytes(detector.device))
    free, _ = torch.cuda.mem_get_info(detector.device)
    return tuple(sorted({1, 8, fitting_batch(free, max(1, (peaks[1] - peaks[0]) // 4))}))
