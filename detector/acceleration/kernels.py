"""The CPU kernels of kernels.cpp, built into a container image or compiled at first use and cached."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from platformdirs import user_cache_path

from detector.acceleration.precision import processor_features

if TYPE_CHECKING:
    from torch import Tensor

_SOURCE = Path(__file__).with_name("kernels.cpp")
# The output of `build`, for images without a compiler.
_BUILT = Path(__file__).with_name("kernels.so")
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fPIC")
# For every CPU with AVX512-BF16, whatever the build machine has.
_PORTABLE_FLAGS = ("-O3", "-march=x86-64-v4", "-mavx512bf16", "-std=c++17", "-fopenmp", "-fPIC")
_COMPILER_SECONDS = 300
LANES = 16


class KernelsUnavailableError(RuntimeError):
    """The kernels cannot run on this machine; `str()` says why."""


class CpuKernels:
    """The compiled kernels; tensors are bfloat16 and channels-last unless stated otherwise."""

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, integer = ctypes.c_void_p, ctypes.c_int64
        self._convolve, self._normalise = library.convolve, library.normalise
        self._convolve.argtypes = [pointer] * 5 + [integer] * 5 + [ctypes.c_int]
        self._normalise.argtypes = [pointer] * 4 + [integer] * 4 + [ctypes.c_float, ctypes.c_int]
        self._convolve.restype = self._normalise.restype = None

    def convolve(self, x: "Tensor", packed: "Tensor", bias: "Tensor", residual: "Tensor | None") -> "Tensor":
        """Convolve `x` (B, C, H, W) with `packed` 3x3 weights and zero padding of 1: (B, O, H, W).

        `bias` (B, O) float32 and `residual` (B, O, H, W) are added before the result is rounded. Raises
        ValueError when the shapes do not fit, because the kernels do not check their memory accesses.
        """
        import torch

        batch, channels, height, width = x.shape
        x, bias = _channels_last(x), bias.float().contiguous()
        residual = None if residual is None else _channels_last(residual)
        shape = (batch, bias.shape[1], height, width)
        whole = channels % LANES == 0 and shape[1] % LANES == 0 and bias.shape[0] == batch
        if not whole or packed.numel() != 16 * shape[1] * channels:
            raise ValueError(f"{packed.numel()} packed weights do not take {tuple(x.shape)} to {shape}")
        if residual is not None and residual.shape != shape:
            raise ValueError(f"{tuple(residual.shape)} cannot be added to {shape}")
        y = torch.empty(shape, dtype=torch.bfloat16, memory_format=torch.channels_last)
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
            torch.get_num_threads(),
        )
        return y

    def normalise(
        self, x: "Tensor", weight: "Tensor", bias: "Tensor", groups: int, epsilon: float
    ) -> "Tensor":
        """Return silu(group_norm(x)) for `x` (B, C, H, W) and `weight`, `bias` (C,) float32.

        Raises ValueError when the shapes do not fit.
        """
        import torch

        x, weight, bias = _channels_last(x), weight.float().contiguous(), bias.float().contiguous()
        channels = x.shape[1]
        if channels % LANES or channels % groups or weight.shape != (channels,) or bias.shape != (channels,):
            raise ValueError(
                f"{channels} channels do not fit {groups} groups and {tuple(weight.shape)} scales"
            )
        y = torch.empty_like(x)
        self._normalise(
            x.data_ptr(),
            weight.data_ptr(),
            bias.data_ptr(),
            y.data_ptr(),
            x.shape[0],
            x.shape[2] * x.shape[3],
            x.shape[1],
            groups,
            epsilon,
            torch.get_num_threads(),
        )
        return y


def packed_weights(weight: "Tensor") -> "Tensor":
    """Transform and reorder 3x3 weights (O, C, 3, 3), both multiples of 16, for `CpuKernels.convolve`.

    U = G g G^T (Lavin and Gray, CVPR 2016) in float64, rounded once to bfloat16. For each of the 16 points
    and each block of outputs, pairs of input channels are adjacent: the dot-product instruction reads pairs.
    """
    import torch

    outputs, channels = weight.shape[:2]
    g = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float64)
    u = torch.einsum("ij,ocjk,lk->iloc", g, weight.double(), g).to(torch.bfloat16)
    block = next(lanes for lanes in (64, 32, LANES) if outputs % lanes == 0)
    return u.reshape(16, outputs // block, block, channels // 2, 2).permute(0, 1, 3, 2, 4).contiguous()


@cache
def cpu_kernels() -> CpuKernels:
    """Load the kernels: built-in, cached or freshly compiled. Raises `KernelsUnavailableError`."""
    import torch  # noqa: F401 - the kernels use its OpenMP runtime, which must be loaded before them

    processor = processor_features()
    if "avx512_bf16" not in processor:
        raise KernelsUnavailableError("this CPU has no AVX512-BF16 instructions")
    if _BUILT.is_file():
        try:
            return CpuKernels(ctypes.CDLL(str(_BUILT)))
        except (OSError, AttributeError) as error:
            raise KernelsUnavailableError(
                f"the kernels of this installation cannot be loaded: {error}"
            ) from error
    compiler = shutil.which("g++")
    if compiler is None:
        raise KernelsUnavailableError("there is no C++ compiler (g++) on this machine")
    # The key includes the CPU, because machines with different CPUs may share a home directory.
    key = hashlib.sha256(_SOURCE.read_bytes() + f"{_FLAGS}{sorted(processor)}".encode()).hexdigest()[:32]
    library = user_cache_path("dnf-moderation") / "kernels" / f"{key}.so"
    try:
        if library.is_file():
            return CpuKernels(ctypes.CDLL(str(library)))
        with tempfile.TemporaryDirectory() as folder:
            built = _compile(compiler, _FLAGS, Path(folder))
            _cache(built, library)
            return CpuKernels(ctypes.CDLL(str(built)))
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or str(error)
        raise KernelsUnavailableError(
            f"the kernels could not be compiled or loaded: {detail[:500]}"
        ) from error


def build(library: Path = _BUILT) -> None:
    """Compile the kernels to `library` for every x86-64 CPU with AVX512-BF16, for a container image.

    Raises `KernelsUnavailableError` without a compiler and subprocess.CalledProcessError when it fails.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        raise KernelsUnavailableError("there is no C++ compiler (g++) on this machine")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(_compile(compiler, _PORTABLE_FLAGS, Path(folder)), library)


def _compile(compiler: str, flags: Sequence[str], folder: Path) -> Path:
    compiled, library = folder / "kernels.o", folder / "kernels.so"
    # Linked without -fopenmp, so that the OpenMP symbols are torch's and both share one thread pool.
    for command in (
        [compiler, *flags, "-c", str(_SOURCE), "-o", str(compiled)],
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


def _channels_last(x: "Tensor") -> "Tensor":
    import torch

    return x.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
