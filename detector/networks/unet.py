"""Diffusion U-Nets as noise estimators: diffusers folders, hub ids and checkpoints in the DDIM naming."""

import json
import math
import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

if TYPE_CHECKING:
    from diffusers import UNet2DModel


class UnetRejectedError(ValueError):
    """The checkpoint or its configuration does not describe an unconditional pixel-space U-Net."""


class DdimModelConfig(BaseModel):
    """The `model` section of a configuration for the DDIM authors' code; other fields are ignored."""

    model_config = ConfigDict(frozen=True)

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    in_channels: int = 3
    out_ch: int = 3
    resamp_with_conv: bool = True


class DdimDataConfig(BaseModel):
    """The `data` section: `image_size` in pixels, from which the levels with attention follow."""

    model_config = ConfigDict(frozen=True)

    image_size: int = Field(gt=0)


class DdimConfig(BaseModel):
    """The parts of a configuration for the DDIM authors' code that describe the U-Net."""

    model_config = ConfigDict(frozen=True)

    data: DdimDataConfig
    model: DdimModelConfig


class Unet(nn.Module):
    """diffusers' `UNet2DModel` as a `NoiseEstimator`.

    A model of 3 channels takes the picture. One of 12 takes its patches of 2 x 2 pixels (space to depth):
    channel `4 c + 2 y + x` of its input and of its output is colour `c` of the pixel (y, x) of a patch.
    """

    def __init__(self, network: "UNet2DModel") -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Estimate the noise in `x` (B, 3, H, W) in -1..1 at `timesteps` (B,): (B, 3, H, W)."""
        dtype = next(self.network.parameters()).dtype
        if self.patch == 1:
            return cast("Tensor", self.network(x.to(dtype), timesteps, return_dict=False)[0])
        patches = pixel_unshuffle(x.to(dtype), self.patch)
        return pixel_shuffle(self.network(patches, timesteps, return_dict=False)[0], self.patch)

    @property
    def patch(self) -> int:
        """Side of the patches of pixels that the network takes as channels; 1 for a network on pixels."""
        return math.isqrt(self.network.config["in_channels"] // 3)


def load_unet(source: str | Path) -> Unet:
    """Load a U-Net from a diffusers folder or a hub id such as `google/ddpm-bedroom-256`, in float32.

    Only safetensors weights are read. Raises `UnetRejectedError` when no such U-Net can be loaded.
    """
    from diffusers import UNet2DModel

    try:
        network = UNet2DModel.from_pretrained(str(source), use_safetensors=True, low_cpu_mem_usage=False)
    except (OSError, ValueError, KeyError) as error:
        raise UnetRejectedError(f"no diffusion U-Net can be loaded from {source}: {error}") from error
    # The weights may be stored in float16; `accelerate` chooses the type of the computation.
    return Unet(network.float()).eval()


def save_unet(unet: Unet, folder: Path, *, half: bool = False) -> None:
    """Write the U-Net as a diffusers folder with safetensors weights, in float16 when `half`."""
    network = deepcopy(unet.network).half() if half else unet.network
    network.save_pretrained(str(folder), safe_serialization=True)
    # Without the path that the network was loaded from, which diffusers records.
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def diffusers_config(config: DdimConfig) -> dict[str, Any]:
    """Translate a DDIM configuration to the arguments of an equivalent `UNet2DModel`."""
    model = config.model
    levels = len(model.ch_mult)
    attention = [config.data.image_size // 2**level in model.attn_resolutions for level in range(levels)]
    return {
        "sample_size": config.data.image_size,
        "in_channels": model.in_channels,
        "out_channels": model.out_ch,
        "block_out_channels": tuple(model.ch * multiplier for multiplier in model.ch_mult),
        "layers_per_block": model.num_res_blocks,
        "down_block_types": tuple("AttnDownBlock2D" if has else "DownBlock2D" for has in attention),
        "up_block_types": tuple("AttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attention)),
        "center_input_sample": False,
        "time_embedding_type": "positional",
        "freq_shift": 1,
        "flip_sin_to_cos": False,
        "downsample_padding": 0,
        "act_fn": "silu",
        "norm_eps": 1e-6,
        "norm_num_groups": 32,
        "attention_head_dim": None,
        "mid_block_scale_factor": 1,
        "add_attention": True,
    }


def from_ddim_checkpoint(state: Mapping[str, Tensor], config: DdimConfig) -> Unet:
    """Build a U-Net from a checkpoint of the DDIM authors' code; the parameters map one to one.

    Raises `UnetRejectedError` when a name or a shape does not fit the configuration.
    """
    from diffusers import UNet2DModel

    if not config.model.resamp_with_conv:
        raise UnetRejectedError("U-Nets that resample without a convolution are not supported")
    network = UNet2DModel(**diffusers_config(config))
    expected = network.state_dict()
    translated: dict[str, Tensor] = {}
    for name, value in state.items():
        target = diffusers_name(name, levels=len(config.model.ch_mult))
        if target not in expected:
            raise UnetRejectedError(f"the checkpoint's parameter {name} does not exist in this configuration")
        weight = value.squeeze(-1).squeeze(-1) if value.dim() > expected[target].dim() else value
        if weight.shape != expected[target].shape:
            raise UnetRejectedError(
                f"{name} has shape {tuple(value.shape)} instead of {tuple(expected[target].shape)}"
            )
        translated[target] = weight
    missing = expected.keys() - translated.keys()
    if missing:
        raise UnetRejectedError(f"the checkpoint lacks {len(missing)} parameters, {min(missing)} among them")
    network.load_state_dict(translated)
    return Unet(network).eval()


_TOP_LEVEL = {
    "temb.dense.0": "time_embedding.linear_1",
    "temb.dense.1": "time_embedding.linear_2",
    "norm_out": "conv_norm_out",
    "mid.block_1": "mid_block.resnets.0",
    "mid.block_2": "mid_block.resnets.1",
    "mid.attn_1": "mid_block.attentions.0",
}
_WITHIN = {
    "temb_proj": "time_emb_proj",
    "nin_shortcut": "conv_shortcut",
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}


def diffusers_name(name: str, *, levels: int) -> str:
    """Translate a parameter's name from the DDIM authors' code to diffusers, for a U-Net of `levels` levels.

    DDIM counts `up.L` from the highest resolution, diffusers counts `up_blocks` from the lowest.
    """
    for prefix, target in _TOP_LEVEL.items():
        if name.startswith(f"{prefix}."):
            return _within(target, name.removeprefix(f"{prefix}."))
    block = re.fullmatch(r"(down|up)\.(\d+)\.(?:(block|attn)\.(\d+)|downsample|upsample)\.(.+)", name)
    if block is None:
        return name
    direction, level, kind, index, rest = block.groups()
    prefix = f"down_blocks.{level}" if direction == "down" else f"up_blocks.{levels - 1 - int(level)}"
    if kind is None:
        return f"{prefix}.{direction}samplers.0.{rest}"
    return _within(f"{prefix}.{'resnets' if kind == 'block' else 'attentions'}.{index}", rest)


def _within(block: str, rest: str) -> str:
    part, _, parameter = rest.rpartition(".")
    return ".".join(filter(None, (block, _WITHIN.get(part, part), parameter)))
