"""A U-Net on a GPU: compiled by PyTorch, and captured once for each batch size."""

from typing import TYPE_CHECKING, NamedTuple

import structlog
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from detector.networks.dnf import NoiseEstimator

log = structlog.get_logger(__name__)

GRAPH_SIZES = (1, 2, 4, 8, 16, 32, 64)
_MAX_ERROR = 500


class _Graph(NamedTuple):
    """A captured pass and the tensors that it reads and writes at each replay."""

    graph: torch.cuda.CUDAGraph
    x: Tensor
    timesteps: Tensor
    out: Tensor


class CompiledNetwork(nn.Module):
    """A U-Net that PyTorch compiles with its first batches, which takes about a minute and a compiler.

    After a failed compilation it runs as it is, and one warning event `compilation_failed` is logged.
    """

    def __init__(self, network: "NoiseEstimator") -> None:
        super().__init__()
        self.network = network
        # All batches of two or more share one compilation; a batch of one would need its own.
        self._compiled: NoiseEstimator | None = torch.compile(network, dynamic=True)

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Estimate the noise in `x` (B, 3, H, W) at `timesteps` (B,): (B, 3, H, W)."""
        if self._compiled is not None:
            from torch._dynamo.exc import TorchDynamoException

            try:
                return self._compiled(x, timesteps)
            except TorchDynamoException as error:
                log.warning("compilation_failed", error=str(error)[:_MAX_ERROR])
                self._compiled = None
        return self.network(x, timesteps)


class CapturedGraphs(nn.Module):
    """A U-Net on a CUDA device that replays one captured graph for each of several batch sizes.

    A batch between two sizes is padded with zeros to the next one; a batch above the largest runs without a
    graph. After a failed capture every batch does, and one warning event `graph_capture_failed` is logged.
    """

    def __init__(self, network: "NoiseEstimator", sizes: tuple[int, ...] = GRAPH_SIZES) -> None:
        super().__init__()
        self.network = network
        self._sizes = sizes
        self._graphs: dict[tuple[int, ...], _Graph] = {}

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Estimate the noise in `x` (B, 3, H, W) at `timesteps` (B,): (B, 3, H, W)."""
        count, size = x.shape[0], padded_size(x.shape[0], self._sizes)
        if size is None:
            return self.network(x, timesteps)
        shape = (size, *x.shape[1:])
        if shape not in self._graphs:
            try:
                self._graphs[shape] = self._capture(shape, x)
            except RuntimeError as error:
                log.warning("graph_capture_failed", shape=shape, error=str(error))
                self._sizes = ()
                return self.network(x, timesteps)
        captured = self._graphs[shape]
        captured.x.copy_(padded(x, size), non_blocking=True)
        captured.timesteps.copy_(padded(timesteps, size), non_blocking=True)
        captured.graph.replay()
        # Cloned, because the next replay overwrites the output.
        return captured.out[:count].clone()

    def _capture(self, shape: tuple[int, ...], like: Tensor) -> _Graph:
        x = torch.zeros(shape, dtype=like.dtype, device=like.device).to(memory_format=torch.channels_last)
        timesteps = torch.zeros(shape[0], dtype=torch.long, device=like.device)
        # The first passes choose algorithms and allocate memory, which is not allowed during a capture.
        side = torch.cuda.Stream(like.device)
        side.wait_stream(torch.cuda.current_stream(like.device))
        with torch.cuda.stream(side):
            for _ in range(3):
                self.network(x, timesteps)
        torch.cuda.current_stream(like.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = self.network(x, timesteps)
        return _Graph(graph, x, timesteps, out)


def padded_size(count: int, sizes: tuple[int, ...]) -> int | None:
    """Return the smallest of `sizes` that holds `count` pictures; None when the largest is too small."""
    return min((size for size in sizes if size >= count), default=None)


def padded(batch: Tensor, size: int) -> Tensor:
    """Extend a batch (B, ...) with zeros to (size, ...)."""
    if batch.shape[0] == size:
        return batch
    return torch.cat([batch, batch.new_zeros((size - batch.shape[0], *batch.shape[1:]))])


def fitting_batch(free_bytes: int, picture_bytes: int, sizes: tuple[int, ...] = GRAPH_SIZES) -> int:
    """Return the largest of `sizes` that fills at most 80 % of the free memory, or the smallest of them."""
    return max((size for size in sizes if size * picture_bytes <= 0.8 * free_bytes), default=min(sizes))
