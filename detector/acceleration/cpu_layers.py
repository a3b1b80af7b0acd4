"""The networks on the CPU kernels: Winograd convolutions, fused normalisations, a U-Net without copies."""

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import group_norm, interpolate, linear, pad, pixel_shuffle, pixel_unshuffle, silu

from detector.acceleration.kernels import CHANNELS_TOGETHER, CpuKernels
from detector.networks.resnet import BasicBlock
from detector.networks.unet import Unet

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Wider layers are few and small: packed weights, four times the plain ones, would cost more than they save.
_MAX_OUT_CHANNELS = 256
_MIN_PIXELS = 16 * 16
_PLAIN_BLOCKS = {"DownBlock2D", "AttnDownBlock2D", "UNetMidBlock2D", "UpBlock2D", "AttnUpBlock2D"}


class Convolution(nn.Module):
    """A convolution with what is added to it: (B, C, H, W) to (B, O, H', W').

    A 3x3 convolution with stride 1 and padding 1 of at least 16 x 16 pixels runs on the Winograd kernel.
    """

    def __init__(self, convolution: nn.Conv2d, kernels: CpuKernels) -> None:
        super().__init__()
        self.plain = convolution
        self._kernels = kernels
        self._suits_winograd = _suits_winograd(convolution)
        # Until they are packed, so that a conversion to bfloat16 does not round them first.
        self._weight: Tensor | None = convolution.weight.detach()
        self._packed: Tensor | None = None
        outputs, bias = convolution.out_channels, convolution.bias
        self._missing = -outputs % CHANNELS_TOGETHER
        self._bias = pad(torch.zeros(outputs) if bias is None else bias.detach(), (0, self._missing))[None]

    def forward(
        self,
        x: Tensor,
        offset: Tensor | None = None,
        residual: Tensor | None = None,
        *,
        doubled: bool = False,
        relu: bool = False,
    ) -> Tensor:
        """Convolve, add `offset` (1, O) and `residual` (B, O, H', W'), and with `relu` cut negative values.

        When `doubled`, the nearest-neighbour enlargement of `x` by two is convolved.
        """
        if not self._suits_winograd or x.shape[2] * x.shape[3] < _MIN_PIXELS:
            out = self.plain(interpolate(x, scale_factor=2.0, mode="nearest") if doubled else x)
            if offset is not None:
                out += offset[:, :, None, None]
            if residual is not None:
                out += residual
            return cast("Tensor", out.relu_() if relu else out)
        if self._packed is None:
            # At the first use, because layers of low resolution never need them; with outputs of zero up to a
            # multiple of what the kernel takes.
            weight = pad(cast("Tensor", self._weight), (0, 0, 0, 0, 0, 0, 0, self._missing))
            self._packed, self._weight = self._kernels.packed_weights(weight), None
        bias = self._bias if offset is None else self._bias + pad(offset.float(), (0, self._missing))
        bias = bias.expand(x.shape[0], -1)
        out = self._kernels.convolve(x, self._packed, bias, residual, doubled=doubled, relu=relu)
        return out[:, : self.plain.out_channels]


class NormalisedActivation(nn.Module):
    """Group normalisation and SiLU in one pass: (B, C, H, W) and (B, D, H, W) to (B, C + D, H, W)."""

    def __init__(self, norm: nn.GroupNorm, kernels: CpuKernels) -> None:
        super().__init__()
        self.norm = norm
        self._kernels = kernels
        self._weight, self._bias = norm.weight.detach().float(), norm.bias.detach().float()

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Return silu(group_norm(cat(x, skip)))."""
        norm, parts = self.norm, [x] if skip is None else [x, skip]
        if any(part.shape[1] % CHANNELS_TOGETHER for part in parts):
            return silu(
                group_norm(torch.cat(parts, dim=1), norm.num_groups, norm.weight, norm.bias, norm.eps)
            )
        return self._kernels.normalise(
            x, skip, self._weight, self._bias, groups=norm.num_groups, epsilon=norm.eps
        )


class FusedResidualBlock(nn.Module):
    """A diffusion U-Net's residual block in four passes: twice normalisation with SiLU, then convolution.

    Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020, appendix B. The convolutions also add
    the time embedding and the shortcut.
    """

    def __init__(self, block: Any, kernels: CpuKernels) -> None:
        super().__init__()
        self.norm1, self.norm2 = (NormalisedActivation(norm, kernels) for norm in (block.norm1, block.norm2))
        self.conv1, self.conv2 = (Convolution(conv, kernels) for conv in (block.conv1, block.conv2))
        self.time_emb_proj: nn.Linear = block.time_emb_proj
        self.conv_shortcut: nn.Conv2d | None = block.conv_shortcut
        #: Whether the output is the same at every timestep. Its embedding moves whole channels, and a
        #: normalisation of each channel by itself takes that away again.
        self.timeless: bool = block.norm2.num_groups == block.norm2.num_channels

    def forward(self, x: Tensor, temb: Tensor | None, skip: Tensor | None = None) -> Tensor:
        """Return the block's output for `x` (B, C, H, W), `skip` (B, D, H, W) and `temb` (B, E), activated.

        A `timeless` block needs no `temb`.
        """
        offset = None if temb is None else self.time_emb_proj(temb)
        inner = self.conv1(self.norm1(x, skip), offset)
        return cast("Tensor", self.conv2(self.norm2(inner), None, self._shortcut(x, skip)))

    def _shortcut(self, x: Tensor, skip: Tensor | None) -> Tensor:
        if self.conv_shortcut is None:
            return x if skip is None else torch.cat([x, skip], dim=1)
        weight = self.conv_shortcut.weight.flatten(1)  # (O, C + D)
        # As matrix products: for these PyTorch's convolution leaves its fast library on one thread.
        out = linear(x.permute(0, 2, 3, 1), weight[:, : x.shape[1]], self.conv_shortcut.bias)
        if skip is not None:
            rows = skip.permute(0, 2, 3, 1).reshape(-1, skip.shape[1])
            out.view(-1, out.shape[3]).addmm_(rows, weight[:, x.shape[1] :].T)
        return out.permute(0, 3, 1, 2)


class FusedUnet(nn.Module):
    """A `NoiseEstimator` that computes the same as `Unet` in fewer passes over memory."""

    def __init__(self, unet: Unet, kernels: CpuKernels) -> None:
        super().__init__()
        network: Any = unet.network
        self.network = network
        self._patch = unet.patch
        self.norm_out = NormalisedActivation(network.conv_norm_out, kernels)
        self.conv_out = Convolution(network.conv_out, kernels)
        for block in _blocks(network):
            block.resnets = nn.ModuleList(FusedResidualBlock(each, kernels) for each in block.resnets)
            for upsampler in getattr(block, "upsamplers", None) or ():
                upsampler.conv = Convolution(upsampler.conv, kernels)
        first = network.down_blocks[0]
        # How many blocks at the start compute the same for every timestep.
        self._timeless = int(
            getattr(first, "attentions", None) is None and all(block.timeless for block in first.resnets)
        )

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Estimate the noise in `x` (B, 3, H, W) in -1..1 at `timesteps` (B,): (B, 3, H, W)."""
        (estimate,) = self.estimates(x, [timesteps])
        return estimate

    def estimates(self, x: Tensor, timesteps: "Sequence[Tensor]") -> list[Tensor]:
        """Estimate the noise in `x` (B, 3, H, W) at each of `timesteps` (B,) or (1,), in one go."""
        network = self.network
        dtype = network.conv_in.weight.dtype
        patches = pixel_unshuffle(x.to(dtype), self._patch)
        hidden = network.conv_in(patches.contiguous(memory_format=torch.channels_last))
        shared = self._down([hidden], network.down_blocks[: self._timeless], None)
        found: list[Tensor] = []
        for each in timesteps:
            temb = silu(network.time_embedding(network.time_proj(each).to(dtype)))
            skips = self._down([*shared], network.down_blocks[self._timeless :], temb)
            found.append(pixel_shuffle(self._up(skips, temb), self._patch))
        return found

    @staticmethod
    def _down(skips: list[Tensor], blocks: "Iterable[Any]", temb: Tensor | None) -> list[Tensor]:
        """Append to `skips` what the blocks make of its last tensor, layer by layer."""
        for block in blocks:
            for index, resnet in enumerate(block.resnets):
                skips.append(_attended(block, index, resnet(skips[-1], temb)))
            skips.extend(downsampler(skips[-1]) for downsampler in block.downsamplers or ())
        return skips

    def _up(self, skips: list[Tensor], temb: Tensor) -> Tensor:
        middle = self.network.mid_block
        hidden = middle.resnets[0](skips[-1], temb)
        for index, resnet in enumerate(middle.resnets[1:]):
            hidden = resnet(_attended(middle, index, hidden), temb)
        for block in self.network.up_blocks:
            for index, resnet in enumerate(block.resnets):
                hidden = _attended(block, index, resnet(hidden, temb, skips.pop()))
            for upsampler in block.upsamplers or ():
                hidden = upsampler.conv(hidden, doubled=True)
        return cast("Tensor", self.conv_out(self.norm_out(hidden)))


class FusedBasicBlock(nn.Module):
    """A `BasicBlock` with folded batch normalisations, in two passes."""

    def __init__(self, block: BasicBlock, kernels: CpuKernels) -> None:
        super().__init__()
        self.conv1, self.conv2 = (Convolution(conv, kernels) for conv in (block.conv1, block.conv2))
        self.downsample = block.downsample

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        residual = x if self.downsample is None else self.downsample(x)
        return cast("Tensor", self.conv2(self.conv1(x, relu=True), None, residual, relu=True))


def fused_unet(unet: Unet, kernels: CpuKernels) -> "FusedUnet | Unet":
    """Return a U-Net on the kernels with the layers of `unet`; `unet` itself if it is of another kind."""
    return FusedUnet(unet, kernels) if _can_fuse(unet.network) else unet


def fuse_classifier(network: nn.Module, kernels: CpuKernels) -> None:
    """Put the convolutions of a classifier with folded batch normalisations on the kernels, in place."""
    for name, child in list(network.named_children()):
        if isinstance(child, BasicBlock):
            setattr(network, name, FusedBasicBlock(child, kernels))
        elif isinstance(child, nn.Conv2d) and _suits_winograd(child):
            setattr(network, name, Convolution(child, kernels))
        else:
            fuse_classifier(child, kernels)


def _attended(block: Any, index: int, hidden: Tensor) -> Tensor:
    attentions = getattr(block, "attentions", None)
    attention = attentions[index] if attentions else None
    return hidden if attention is None else cast("Tensor", attention(hidden))


def _suits_winograd(layer: nn.Conv2d) -> bool:
    shape = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode
    plain = shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")
    return plain and layer.in_channels % CHANNELS_TOGETHER == 0 and layer.out_channels <= _MAX_OUT_CHANNELS


def _blocks(network: Any) -> "Iterable[Any]":
    return [*network.down_blocks, network.mid_block, *network.up_blocks]


def _can_fuse(network: Any) -> bool:
    config = network.config
    return bool(
        not config.center_input_sample
        and config.time_embedding_type == "positional"
        and network.class_embedding is None
        and network.mid_block is not None
        and isinstance(network.conv_act, nn.SiLU)
        and all(type(block).__name__ in _PLAIN_BLOCKS for block in _blocks(network))
        and all(_can_fuse_block(resnet) for block in _blocks(network) for resnet in block.resnets)
        and "resnet" not in {config.downsample_type, config.upsample_type}
    )


def _can_fuse_block(block: Any) -> bool:
    return bool(
        block.time_embedding_norm == "default"
        and block.time_emb_proj is not None
        and not block.skip_time_act
        and block.upsample is None
        and block.downsample is None
        and block.output_scale_factor == 1
        and isinstance(block.nonlinearity, nn.SiLU)
        and all(isinstance(norm, nn.GroupNorm) and norm.affine for norm in (block.norm1, block.norm2))
    )
