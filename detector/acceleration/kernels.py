"""The CPU kernels of kernels.cpp, built into a container image or compiled at first use and cached."""

import ctypes
import hashlib
import math
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from platformdirs import user_cache_path

from detector.acceleration.precision import processor_features

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_SOURCE = Path(__file__).with_name("kernels.cpp")
_FLAGS = ("-O3", "-std=gnu++17", "-fopenmp", "-fPIC")
# What a CPU can compute with, and the compiler's options for it.
_TARGETS = {
    "AVX2": ("-march=x86-64-v3",),
    "AVX512": ("-march=x86-64-v4",),
    "AVX512-BF16": ("-march=x86-64-v4", "-mavx512bf16"),
}
_COMPILER_SECONDS = 300
CHANNELS_TOGETHER = 16


class KernelsUnavailableError(RuntimeError):
    """The kernels cannot run on this machine; `str()` says why."""


class CpuKernels:
    """The compiled kernels for float32 or bfloat16; tensors are of this type and channels-last."""

    def __init__(self, library: Path, target: str, dtype: "torch.dtype") -> None:
        #: The instructions that they use: AVX2, AVX512 or AVX512-BF16.
        self.target = target
        self._dtype = dtype
        loaded = ctypes.CDLL(str(library))
        pointer, integer, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        suffix = str(dtype).removeprefix("torch.")
        self._convolve, self._normalise = loaded[f"convolve_{suffix}"], loaded[f"normalise_{suffix}"]
        self._convolve.argtypes = [pointer] * 5 + [integer] * 5 + [ctypes.c_bool] * 2 + [number]
        inputs = (pointer, integer, pointer, integer)
        self._normalise.argtypes = (*inputs, *[pointer] * 3, *[integer] * 3, ctypes.c_float, number)
        self._convolve.restype = self._normalise.restype = None
        self._outputs_together = loaded.outputs_together
        self._outputs_together.argtypes, self._outputs_together.restype = [integer], integer
        # The points of Winograd's transforms beside infinity, and the inputs that are adjacent.
        root = math.sqrt(2)
        precise = suffix == "float32"
        self._points = (0.0, 1 / root, -1 / root, root, -root) if precise else (0.0, 1.0, -1.0)
        self._adjacent = 1 if precise else 2

    def packed_weights(self, weight: "Tensor") -> "Tensor":
        """Transform and reorder 3x3 weights (O, C, 3, 3) float32, both multiples of 16, for `convolve`.

        U = G g G^T (Lavin and Gray, CVPR 2016) in float64, rounded once: for each of the transform's points
        the weights of the outputs that are computed together, then the next outputs'.
        """
        import torch

        rows = [
            [
                point**power / math.prod(point - other for other in self._points if other != point)
                for power in range(3)
            ]
            for point in self._points
        ]
        g = torch.tensor([*rows, [0, 0, 1]], dtype=torch.float64)
        u = torch.einsum("ij,ocjk,lk->iloc", g, weight.double(), g).to(self._dtype)
        outputs, channels = weight.shape[:2]
        together = self._outputs_together(outputs)
        parts = u.reshape(
            len(g) ** 2, outputs // together, together, channels // self._adjacent, self._adjacent
        )
        return parts.permute(0, 1, 3, 2, 4).contiguous()

    def convolve(
        self,
        x: "Tensor",
        packed: "Tensor",
        bias: "Tensor",
        residual: "Tensor | None",
        *,
        doubled: bool = False,
        relu: bool = False,
    ) -> "Tensor":
        """Convolve `x` (B, C, H, W) with `packed` 3x3 weights and zero padding of 1: (B, O, H, W).

        `bias` (B, O) and `residual` (B, O, H, W) are added, and with `relu` negative results are 0. When
        `doubled`, each pixel of `x` counts for 2 x 2, and the results have twice its height and width. Raises
        ValueError when the shapes do not fit, because the kernels do not check their memory accesses.
        """
        import torch

        batch, channels, height, width = x.shape
        if doubled:
            height, width = 2 * height, 2 * width
        x, bias = self._channels_last(x), bias.float().contiguous()
        residual = None if residual is None else self._channels_last(residual)
        shape = (batch, bias.shape[1], height, width)
        whole = channels % CHANNELS_TOGETHER == 0 and shape[1] % CHANNELS_TOGETHER == 0
        points = (len(self._points) + 1) ** 2
        if not whole or bias.shape[0] != batch or packed.numel() != points * shape[1] * channels:
            raise ValueError(f"{packed.numel()} packed weights do not take {tuple(x.shape)} to {shape}")
        if residual is not None and residual.shape != shape:
            raise ValueError(f"{tuple(residual.shape)} cannot be added to {shape}")
        y = torch.empty(shape, dtype=self._dtype, memory_format=torch.channels_last)
        self._convolve(
            x.data_ptr(),
            packed.data_ptr(),
            bias.data_ptr(),
            None if residual is None else residual.data_ptr(),
            y.data_ptr(),
            batch,
            height,
            width,
            channels,
            shape[1],
            doubled,
            relu,
            torch.get_num_threads(),
        )
        return y

    def normalise(
        self,
        x: "Tensor",
        skip: "Tensor | None",
        weight: "Tensor",
        bias: "Tensor",
        *,
        groups: int,
        epsilon: float,
    ) -> "Tensor":
        """Return silu(group_norm(cat(x, skip))) for `x` (B, C, H, W) and `skip`, None or (B, D, H, W).

        `weight` and `bias` are (C + D,). Raises ValueError when the shapes do not fit.
        """
        import torch

        x, weight, bias = self._channels_last(x), weight.float().contiguous(), bias.float().contiguous()
        batch, left, height, width = x.shape
        skip = x[:, :0] if skip is None else self._channels_last(skip)
        right = skip.shape[1]
        channels = left + right
        whole = left % CHANNELS_TOGETHER == 0 and right % CHANNELS_TOGETHER == 0 and channels % groups == 0
        if not whole or weight.shape != (channels,) or bias.shape != (channels,):
            raise ValueError(
                f"{left} and {right} channels do not fit {groups} groups and {tuple(weight.shape)} scales"
            )
        if skip.shape != (batch, right, height, width):
            raise ValueError(f"{tuple(skip.shape)} cannot be stacked on {tuple(x.shape)}")
        shape = (batch, channels, height, width)
        y = torch.empty(shape, dtype=self._dtype, memory_format=torch.channels_last)
        self._normalise(
            x.data_ptr(),
            left,
            skip.data_ptr(),
            right,
            weight.data_ptr(),
            bias.data_ptr(),
            y.data_ptr(),
            batch,
            height * width,
            groups,
            epsilon,
            torch.get_num_threads(),
        )
        return y

    def _channels_last(self, x: "Tensor") -> "Tensor":
        import torch

        return x.to(self._dtype).contiguous(memory_format=torch.channels_last)


@cache
def cpu_kernels(dtype: "torch.dtype", target: str | None = None) -> CpuKernels:
    """Load the kernels for this CPU or a lesser `target`: built-in, cached or freshly compiled.

    Raises `KernelsUnavailableError`.
    """
    target = target or cpu_target()
    if target not in _TARGETS:
        raise KernelsUnavailableError(f"there are kernels for AVX2 and AVX512, not for {target}")
    if str(dtype) == "torch.bfloat16" and target != "AVX512-BF16":
        raise KernelsUnavailableError("this CPU has no AVX512-BF16 instructions")
    try:
        built = _built(target, _SOURCE.parent)
        if built.is_file():
            return CpuKernels(built, target, dtype)
        key = hashlib.sha256(_SOURCE.read_bytes() + f"{_FLAGS}{target}".encode()).hexdigest()[:32]
        cached = user_cache_path("dnf-moderation") / "kernels" / f"{key}.so"
        if cached.is_file():
            return CpuKernels(cached, target, dtype)
        with tempfile.TemporaryDirectory() as folder:
            compiled = _compile(target, Path(folder))
            _cache(compiled, cached)
            return CpuKernels(compiled, target, dtype)
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or str(error)
        raise KernelsUnavailableError(
            f"the kernels could not be compiled or loaded: {detail[:500]}"
        ) from error


def cpu_target() -> str:
    """Return what this CPU can compute with: AVX2, AVX512, AVX512-BF16 or another name of PyTorch's.

    PyTorch decides first, so that `ATEN_CPU_CAPABILITY` holds for both.
    """
    import torch  # its OpenMP runtime, which the kernels use, must be loaded before them

    capability = torch.backends.cpu.get_cpu_capability()
    return "AVX512-BF16" if capability == "AVX512" and "avx512_bf16" in processor_features() else capability


def build(folder: Path = _SOURCE.parent) -> None:
    """Compile the kernels for each kind of CPU into `folder`, for an image without a compiler.

    Raises `KernelsUnavailableError` without a compiler and subprocess.CalledProcessError when it fails.
    """
    for target in _TARGETS:
        with tempfile.TemporaryDirectory() as name:
            shutil.copyfile(_compile(target, Path(name)), _built(target, folder))


def _built(target: str, folder: Path) -> Path:
    return folder / f"kernels-{target.lower()}.so"


def _compile(target: str, folder: Path) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        raise KernelsUnavailableError("there is no C++ compiler (g++) on this machine")
    compiled, library = folder / "kernels.o", folder / "kernels.so"
    # Linked without -fopenmp, so that the OpenMP symbols are torch's and both share one thread pool.
    for command in (
        [compiler, *_FLAGS, *_TARGETS[target], "-c", str(_SOURCE), "-o", str(compiled)],
        [compiler, "-shared", str(compiled), "-o", str(library)],
    ):
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_COMPILER_SECONDS)  # noqa: S603 - fixed
    return library


def _cache(built: Path, library: Path) -> None:
    """Copy the library to the cache atomically; without a writable cache every start compiles again."""
    partial = library.with_suffix(f".{os.getpid()}")
    try:
        library.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        shutil.copyfile(built, partial)
        partial.replace(library)
    except OSError:
        partial.unlink(missing_ok=True)
