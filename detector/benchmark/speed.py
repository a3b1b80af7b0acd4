"""Pictures a second, milliseconds by stage, memory, arithmetic; and ours against the published pipeline."""

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
from detector.detector import Detector, Dtype, best_device
from detector.images.decode import decode

if TYPE_CHECKING:
    from torch import nn

_SIDE = 512

# Dense bfloat16 tensor-core peaks in TFLOP/s, from the vendor's data sheets; the longest name that fits wins.
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

Pipeline = Callable[[Sequence[bytes]], list[float]]


@dataclass(frozen=True)
class Measurement:
    """One row: medians over rounds, in milliseconds a picture; `speed` in pictures a second.

    `tflops` is the arithmetic of the networks done in a second, 1e12 operations, over the whole time;
    `peak_share` its share of the device's peak, 0..1, where that is known; `memory_bytes` the most held in
    RAM, on a CUDA device in its own memory.
    """

    device: str
    dtype: str
    batch_size: int
    acceleration: str
    decode_ms: float
    prepare_ms: float
    dnf_ms: float
    classify_ms: float
    speed: float
    tflops: float
    peak_share: float | None
    memory_bytes: int


@dataclass(frozen=True)
class Comparison:
    """Ours against the published pipeline, round by round: seconds a picture and their ratios.

    `ratios` are by the wall clock; `cpu_ratio` is the median ratio of processor time, which other processes
    on the machine disturb less; `largest_logit_difference` is over all pictures.
    """

    pictures: int
    paper_seconds: float
    ours_seconds: float
    ratios: tuple[float, ...]
    cpu_ratio: float
    largest_logit_difference: float

    @property
    def ratio(self) -> float:
        """How many times faster ours is, the median over rounds."""
        return statistics.median(self.ratios)


def sample_files(count: int) -> list[bytes]:
    """Make JPEG files of 512 x 512 pixels with smooth areas, edges and grain, the same every time."""
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
    """Measure the detector, `compiled` or not, for each device, type and batch size, in turn.

    Without `dtypes`, those that are no detour on the device; without `batch_sizes`, 1, 4 and 16 on a CPU, and
    on a CUDA device 1, 8 and what its free memory holds.
    """
    flops = flops_a_picture(bundle)
    rows: list[Measurement] = []
    for device in devices:
        for dtype in dtypes or usual_dtypes(device):
            detector = Detector.load(bundle, device=device, dtype=dtype, compiled=compiled)
            sizes = batch_sizes or _usual_batch_sizes(detector)
            rows += [_row(detector, size, rounds, flops, peak_tflops) for size in sizes]
    return rows


def usual_dtypes(device: str) -> tuple[Dtype, ...]:
    """Return float32 and, where the device has instructions for it, bfloat16; the faster one is the last."""
    import torch

    place = torch.device(best_device() if device == "auto" else device)
    return ("float32", "bfloat16") if computes_bfloat16(place) else ("float32",)


def _row(
    detector: Detector, batch_size: int, rounds: int, flops: int, peak_tflops: float | None
) -> Measurement:
    files = sample_files(batch_size)
    detector.warm_up(batch_size)
    restart_peak_memory(detector.device)
    stages = np.array([_round(detector, files) for _ in range(rounds)]) / batch_size
    decode_ms, prepare_ms, dnf_ms, classify_ms = (float(value) for value in np.median(stages, axis=0))
    speed = float(1000 / np.median(stages.sum(axis=1)))
    tflops = flops * speed / 1e12
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
        speed=speed,
        tflops=tflops,
        peak_share=tflops / peak if peak and detector.dtype == "bfloat16" else None,
        memory_bytes=peak_memory_bytes(detector.device),
    )


def _round(detector: Detector, files: list[bytes]) -> tuple[float, float, float, float]:
    began = time.perf_counter()
    pictures = [decode(data) for data in files]
    decoded = time.perf_counter()
    prepared = [detector.prepare(picture.pixels) for picture in pictures]
    ready = time.perf_counter()
    finding = detector.examine(prepared)[0]
    return (decoded - began) * 1000, (ready - decoded) * 1000, finding.dnf_ms, finding.classify_ms


def our_pipeline(detector: Detector, pool: Executor, *, at_once: int = 4) -> Pipeline:
    """Return our way from encoded pictures to logits: the next are decoded while the model sees the last."""

    def logits(files: Sequence[bytes]) -> list[float]:
        prepared = list(pool.map(lambda data: detector.prepare(decode(data).pixels), files[:at_once]))
        found: list[float] = []
        for end in range(at_once, len(files) + at_once, at_once):
            waiting = [
                pool.submit(lambda d: detector.prepare(decode(d).pixels), d) for d in files[end:][:at_once]
            ]
            found += [finding.logit for finding in detector.examine(prepared)]
            prepared = [future.result() for future in waiting]
        return found

    return logits


def compare(
    paper: Pipeline,
    ours: Pipeline,
    files: Sequence[bytes],
    *,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    processor_clock: Callable[[], float] = time.process_time,
) -> Comparison:
    """Run both pipelines on the same files, one after the other in each round, after a round unmeasured.

    Whatever else the machine does falls on both alike, so that the ratio means more than either time.
    """
    expected, found = paper(files), ours(files)
    wall: dict[str, list[float]] = {"paper": [], "ours": []}
    processor: dict[str, list[float]] = {"paper": [], "ours": []}
    for number in range(rounds):
        order = [("paper", paper), ("ours", ours)]
        for name, pipeline in order if number % 2 == 0 else reversed(order):
            began, processor_began = clock(), processor_clock()
            pipeline(files)
            wall[name].append(clock() - began)
            processor[name].append(processor_clock() - processor_began)
    return Comparison(
        pictures=len(files),
        paper_seconds=statistics.median(wall["paper"]) / len(files),
        ours_seconds=statistics.median(wall["ours"]) / len(files),
        ratios=tuple(p / o for p, o in zip(wall["paper"], wall["ours"], strict=True)),
        cpu_ratio=statistics.median(
            p / o for p, o in zip(processor["paper"], processor["ours"], strict=True)
        ),
        largest_logit_difference=max(abs(p - o) for p, o in zip(expected, found, strict=True)),
    )


def flops_a_picture(bundle: Bundle) -> int:
    """Count the floating-point operations of both networks on one picture, all its views and estimates."""
    import torch

    from detector.networks.resnet import build_classifier
    from detector.networks.unet import load_unet

    manifest = bundle.manifest
    size, dnf = manifest.preprocessing.size, manifest.dnf
    with torch.device("meta"):
        classifier = build_classifier(manifest.classifier).eval()
        total = count_flops(classifier, torch.zeros(1, manifest.classifier.in_channels, size, size))
    if manifest.unet is not None and bundle.unet_location:
        unet = load_unet(bundle.unet_location, manifest.unet.revision).to("meta")
        picture = torch.zeros(1, 3, size, size, device="meta")
        passes = len(dnf.timesteps) if dnf.variant == "first" else dnf.steps
        total += passes * count_flops(unet, picture, torch.zeros(1, dtype=torch.long, device="meta"))
    return total * manifest.preprocessing.views


def count_flops(network: "nn.Module", *inputs: Any) -> int:
    """Count one pass's operations in convolutions and matrix products, a multiply-add as two."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(*inputs)
    return int(counter.get_total_flops())


def known_peak_tflops(name: str) -> float | None:
    """Return the bfloat16 peak of the device called `name`, in TFLOP/s, or None when it is not listed."""
    fitting = [known for known in PEAK_TFLOPS if set(known.split()) <= set(name.replace("-", " ").split())]
    return PEAK_TFLOPS[max(fitting, key=len)] if fitting else None


def device_name(device: str) -> str:
    """Return the name of a CUDA device, or of this machine's processor."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return device


def restart_peak_memory(device: str) -> None:
    """Forget the peak so far, where the system allows it."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes(device: str = "cpu") -> int:
    """Return the most memory held since the restart: in RAM, or on a CUDA device in its own memory."""
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
        detector.warm_up(size)  # the first pass may search for algorithms
        restart_peak_memory(detector.device)
        detector.warm_up(size)
        peaks.append(peak_memory_bytes(detector.device))
    free, _ = torch.cuda.mem_get_info(detector.device)
    return tuple(sorted({1, 8, fitting_batch(free, max(1, (peaks[1] - peaks[0]) // 4))}))
