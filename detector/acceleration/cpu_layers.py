"""Layers on the CPU kernels, in place of PyTorch's: Winograd convolutions and fused residual blocks."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from detector.acceleration.kernels import LANES, CpuKernels, packed_weights

# Wider layers are few and work at low resolutions: packed weights would cost memory and save little time.
_MAX_OUT_CHANNELS = 256


class WinogradConvolution(nn.Module):
    """A 3x3 convolution with stride 1 and padding 1: (B, C, H, W) bfloat16 to (B, O, H, W)."""

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
    """Group normalisation and SiLU in one pass over memory: (B, C, H, W) bfloat16 to the same shape."""

    def __init__(self, norm: nn.GroupNorm, kernels: CpuKernels) -> None:
        super().__init__()
        self._kernels, self._groups, self._epsilon = kernels, norm.num_groups, norm.eps
        self._weight, self._bias = (value.detach().float().clone() for value in (norm.weight, norm.bias))

    def forward(self, x: Tensor) -> Tensor:
        """Return silu(group_norm(x))."""
        return self._kernels.normalise(x, self._weight, self._bias, self._groups, self._epsilon)


class FusedResidualBlock(nn.Module):
    """A diffusion U-Net's residual block in four passes: twice normalisation with SiLU, then convolution.

    Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020, appendix B. The convolutions also add
    the time embedding and the shortcut.
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


def replace_layers(network: nn.Module | None, kernels: CpuKernels) -> int:
    """Replace every suitable layer of a float32 network in place; return how many layers were replaced."""
    if network is None:
        return 0
    from diffusers.models.resnet import ResnetBlock2D

    count = 0
    for name, child in list(network.named_children()):
        if isinstance(child, ResnetBlock2D) and _can_fuse(child):
            setattr(network, name, FusedResidualBlock(child, kernels))
            count += 4
        elif isinstance(child, nn.Conv2d) and _suits_winograd(child):
            setattr(network, name, WinogradConvolution(child, kernels))
            count += 1
        else:
            count += replace_layers(child, kernels)
    return count


def _suits_winograd(layer: nn.Conv2d) -> bool:
    shape = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode
    channels = layer.in_channels, layer.out_channels
    plain = shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")
    return plain and all(count % LANES == 0 for count in channels) and layer.out_channels <= _MAX_OUT_CHANNELS


def _can_fuse(block: Any) -> bool:
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
