"""Networks made fast for one device: fused and Winograd layers on a CPU, captured graphs on a CUDA device."""

from typing import TYPE_CHECKING, Any, TypeVar, cast

import structlog
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from detector.acceleration.kernels import (
    LANES,
    CpuKernels,
    KernelsUnavailableError,
    cpu_kernels,
    packed_weights,
)
from detector.networks.resnet import BasicBlock, Bottleneck, ResNet

if TYPE_CHECKING:
    from detector.networks.dnf import NoiseEstimator
    from detector.networks.unet import Unet

log = structlog.get_logger()

Classifier = TypeVar("Classifier", bound=nn.Module)

GRAPH_SIZES = (1, 2, 4, 8, 16, 32, 64)

# Wider layers are few and work at low resolutions: packing them costs memory and saves next to no time.
_WIDEST = 256


def install(
    unet: "Unet | None",
    classifier: Classifier,
    device: torch.device,
    dtype: torch.dtype,
    *,
    compiled: bool = False,
) -> tuple["NoiseEstimator | None", Classifier, str]:
    """Put float32 networks on a device in `dtype`, in the layout and with the layers that are fast there.

    Returns both networks, ready for inference only, and what was done, in words. In float32 the layers stay
    as they are: that path is the reference. `compiled` lets PyTorch's compiler fuse the U-Net's layers on its
    first batches, which takes a minute and a C compiler.
    """
    # Measured on CPU and documented for tensor cores; Metal gains nothing from it.
    layout = torch.contiguous_format if device.type == "mps" else torch.channels_last
    how = "PyTorch's layers"
    kernels: CpuKernels | None = None
    if dtype == torch.bfloat16:
        _fold_batch_norms(classifier)
        if device.type == "cpu":
            try:
                kernels = cpu_kernels()
            except KernelsUnavailableError as reason:
                how = f"PyTorch's layers: {reason}"
    if kernels and not compiled:
        # The packed weights come from float32, before anything is rounded.
        how = f"fused kernels for {_replace(unet, kernels) + _replace(classifier, kernels)} layers"
    networks: list[nn.Module] = [classifier] if unet is None else [unet, classifier]
    for network in networks:
        network.to(device=device, dtype=dtype, memory_format=layout).eval()  # type: ignore[call-overload]
    estimator: NoiseEstimator | None = unet
    sizes: tuple[int, ...] = GRAPH_SIZES
    if unet is not None and compiled:
        # Any batch of two or more shares one compilation; a single picture would need its own.
        estimator, sizes, how = torch.compile(unet, dynamic=True), GRAPH_SIZES[1:], "compiled U-Net"
    if estimator is not None and device.type == "cuda" and dtype == torch.bfloat16:
        how = f"{how}, CUDA graphs" if compiled else "CUDA graphs"
        return CapturedGraphs(estimator, sizes), classifier, how
    return estimator, classifier, how


class WinogradConvolution(nn.Module):
    """A 3x3 convolution, stride and border 1, on the CPU kernels: bfloat16 (B, C, H, W) to (B, O, H, W)."""

    def __init__(self, convolution: nn.Conv2d, kernels: CpuKernels) -> None:
        super().__init__()
        self._kernels = kernels
        self._packed = packed_weights(convolution.weight.detach())
        bias = convolution.bias
        self._bias = torch.zeros(convolution.out_channels) if bias is None else bias.detach().float().clone()

    def forward(self, x: Tensor, offset: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """Convolve; `offset` (B, O) and `residual` (B, O, H, W) are added before the result is rounded."""
        bias = self._bias.expand(x.shape[0], -1)
        bias = bias if offset is None else bias + offset.float()
        return self._kernels.convolve(x, self._packed, bias, residual)


class NormalisedActivation(nn.Module):
    """Group normalisation and SiLU in one pass over memory, on the CPU kernels: (B, C, H, W) bfloat16."""

    def __init__(self, norm: nn.GroupNorm, kernels: CpuKernels) -> None:
        super().__init__()
        self._kernels, self._groups, self._epsilon = kernels, norm.num_groups, norm.eps
        self._weight, self._bias = (value.detach().float().clone() for value in (norm.weight, norm.bias))

    def forward(self, x: Tensor) -> Tensor:
        """Return silu(group_norm(x))."""
        return self._kernels.normalise(x, self._weight, self._bias, self._groups, self._epsilon)


class FusedResidualBlock(nn.Module):
    """A diffusion U-Net's residual block in four passes: norm and SiLU, convolution, and both again.

    Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020, appendix B; the time embedding and
    the shortcut are added inside the convolutions.
    """

    def __init__(self, block: Any, kernels: CpuKernels) -> None:
        super().__init__()
        self.norm1, self.norm2 = (NormalisedActivation(norm, kernels) for norm in (block.norm1, block.norm2))
        self.conv1, self.conv2 = (WinogradConvolution(conv, kernels) for conv in (block.conv1, block.conv2))
        self.time_emb_proj: nn.Module = block.time_emb_proj
        self.conv_shortcut: nn.Module | None = block.conv_shortcut

    def forward(self, hidden_states: Tensor, temb: Tensor) -> Tensor:
        """Return the block's output for `hidden_states` (B, C, H, W) and the time embedding (B, E)."""
        offset = self.time_emb_proj(nn.functional.silu(temb))
        shortcut = hidden_states if self.conv_shortcut is None else self.conv_shortcut(hidden_states)
        inner = self.conv1(self.norm1(hidden_states), offset)
        return cast("Tensor", self.conv2(self.norm2(inner), None, shortcut))


def _replace(network: nn.Module | None, kernels: CpuKernels) -> int:
    """Swap in the fast layers wherever their conditions hold; return how many were."""
    if network is None:
        return 0
    from diffusers.models.resnet import ResnetBlock2D

    count = 0
    for name, child in list(network.named_children()):
        if isinstance(child, ResnetBlock2D) and _fusable(child):
            setattr(network, name, FusedResidualBlock(child, kernels))
            count += 4
        elif isinstance(child, nn.Conv2d) and _suits_winograd(child):
            setattr(network, name, WinogradConvolution(child, kernels))
            count += 1
        else:
            count += _replace(child, kernels)
    return count


def _suits_winograd(layer: nn.Conv2d) -> bool:
    shape = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode
    channels = layer.in_channels, layer.out_channels
    plain = shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")
    return plain and all(count % LANES == 0 for count in channels) and layer.out_channels <= _WIDEST


def _fusable(block: Any) -> bool:
    return bool(
        block.time_embedding_norm == "default"
        and block.time_emb_proj is not None
        and not block.skip_time_act
        and block.upsample is None
        and block.downsample is None
        and block.output_scale_factor == 1
        and isinstance(block.nonlinearity, nn.SiLU)
        and all(isinstance(norm, nn.GroupNorm) and norm.affine for norm in (block.norm1, block.norm2))
        and _suits_winograd(block.conv1)
        and _suits_winograd(block.conv2)
    )


def _fold_batch_norms(classifier: nn.Module) -> None:
    """Fold each batch normalisation into the convolution before it, in float32."""
    pairs = [("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")]
    for module in classifier.eval().modules():
        if isinstance(module, (ResNet, BasicBlock, Bottleneck)):
            for convolution, norm in pairs:
                if hasattr(module, convolution):
                    fused = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm))
                    setattr(module, convolution, fused)
                    setattr(module, norm, nn.Identity())
        elif isinstance(module, nn.Sequential) and len(module) > 1 and isinstance(module[1], nn.BatchNorm2d):
            module[0] = fuse_conv_bn_eval(cast("nn.Conv2d", module[0]), module[1])
            module[1] = nn.Identity()


class CapturedGraphs(nn.Module):
    """A U-Net on a CUDA device whose passes are replayed from one captured graph for each batch size.

    A batch between two sizes is padded with zeros to the next; one above the largest runs uncaptured, and so
    do all after a capture that failed, with one warning event `graph_not_captured`.
    """

    def __init__(self, network: "NoiseEstimator", sizes: tuple[int, ...] = GRAPH_SIZES) -> None:
        super().__init__()
        self.network = network
        self._sizes = sizes
        self._captured: dict[tuple[int, ...], tuple[Any, Tensor, Tensor, Tensor]] = {}

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Estimate the noise in `x` (B, 3, H, W) at `timesteps` (B,): (B, 3, H, W)."""
        count, size = x.shape[0], padded_size(x.shape[0], self._sizes)
        if size is None:
            return self.network(x, timesteps)
        shape = (size, *x.shape[1:])
        if shape not in self._captured:
            try:
                self._captured[shape] = self._capture(shape, x)
            except RuntimeError as error:
                log.warning("graph_not_captured", shape=shape, error=str(error))
                self._sizes = ()
                return self.network(x, timesteps)
        graph, held_x, held_timesteps, out = self._captured[shape]
        held_x.copy_(padded(x, size), non_blocking=True)
        held_timesteps.copy_(padded(timesteps, size), non_blocking=True)
        graph.replay()
        # The next replay overwrites the graph's own output.
        return out[:count].clone()

    def _capture(self, shape: tuple[int, ...], like: Tensor) -> tuple[Any, Tensor, Tensor, Tensor]:
        x = torch.zeros(shape, dtype=like.dtype, device=like.device).to(memory_format=torch.channels_last)
        timesteps = torch.zeros(shape[0], dtype=torch.long, device=like.device)
        # Libraries choose their algorithms and allocate on the first passes, which a capture does not allow.
        side = torch.cuda.Stream(like.device)
        side.wait_stream(torch.cuda.current_stream(like.device))
        with torch.cuda.stream(side):
            for _ in range(3):
                self.network(x, timesteps)
        torch.cuda.current_stream(like.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = self.network(x, timesteps)
        return graph, x, timesteps, out


def padded_size(count: int, sizes: tuple[int, ...]) -> int | None:
    """Return the smallest of `sizes` that holds `count` pictures, or None when all are smaller."""
    return min((size for size in sizes if size >= count), default=None)


def padded(batch: Tensor, size: int) -> Tensor:
    """Extend a batch (B, ...) with zeros to (size, ...)."""
    if batch.shape[0] == size:
        return batch
    return torch.cat([batch, batch.new_zeros((size - batch.shape[0], *batch.shape[1:]))])


def to_device(views: Tensor, device: torch.device) -> Tensor:
    """Move prepared views (B, 3, S, S); to a CUDA device through pinned memory, without waiting."""
    if device.type == "cuda":
        return views.pin_memory().to(device, non_blocking=True)
    return views.to(device)


def fitting_batch(free_bytes: int, bytes_a_picture: int, sizes: tuple[int, ...] = GRAPH_SIZES) -> int:
    """Return the largest of `sizes` whose pictures take at most four fifths of the free memory."""
    return max((size for size in sizes if size * bytes_a_picture <= 0.8 * free_bytes), default=min(sizes))
