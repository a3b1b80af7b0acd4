"""Pictures a second and milliseconds by stage, side by side in one run."""

import resource
import sys
import time
from dataclasses import dataclass

import numpy as np

from detector.bundle import Bundle
from detector.detector import Detector, Dtype

_SIDE = 512


@dataclass(frozen=True)
class Measurement:
    """One row: medians over rounds, in milliseconds a picture; `speed` in pictures a second."""

    dtype: str
    batch_size: int
    prepare_ms: float
    dnf_ms: float
    classify_ms: float
    speed: float


def measure(
    bundle: Bundle, *, device: str = "auto", batch_sizes: tuple[int, ...] = (1, 4, 16), rounds: int = 3
) -> list[Measurement]:
    """Measure the detector on pictures of 512 x 512 noise for each type and batch size, in turn."""
    pixels = np.random.default_rng(0).integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)
    dtypes: tuple[Dtype, ...] = ("float32", "bfloat16")
    rows: list[Measurement] = []
    for dtype in dtypes:
        detector = Detector.load(bundle, device=device, dtype=dtype)
        for batch_size in batch_sizes:
            detector.warm_up(batch_size)
            stages = np.array([_round(detector, pixels, batch_size) for _ in range(rounds)]) / batch_size
            prepare, dnf, classify = np.median(stages, axis=0)
            speed = float(1000 / np.median(stages.sum(axis=1)))
            rows.append(Measurement(dtype, batch_size, float(prepare), float(dnf), float(classify), speed))
    return rows


def _round(
    detector: Detector, pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], batch_size: int
) -> tuple[float, float, float]:
    began = time.perf_counter()
    prepared = [detector.prepare(pixels) for _ in range(batch_size)]
    prepare_ms = (time.perf_counter() - began) * 1000
    finding = detector.examine(prepared)[0]
    return prepare_ms, finding.dnf_ms, finding.classify_ms


def peak_memory_bytes() -> int:
    """Return the most memory that this process has held in RAM, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
