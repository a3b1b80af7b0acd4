"""The classifier's input: the Diffusion Noise Feature, the picture, its residuals, or several of them."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from detector.bundle.manifest import DnfConfig, Feature, needs_unet
from detector.networks.dnf import NoiseEstimator, diffusion_noise_feature


def network_input(views: Tensor) -> Tensor:
    """Convert views (B, S, S, 3) uint8 to (B, 3, S, S) float32 in -1..1; float32 is left as it is."""
    if views.dtype != torch.uint8:
        return views
    channels_first = views.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return channels_first.div_(127.5).sub_(1)


def compute_feature(feature: Feature, unet: NoiseEstimator | None, x: Tensor, dnf: DnfConfig) -> Tensor:
    """Compute the feature of pictures `x` (B, 3, H, W) in -1..1: (B, channels, H, W) float32.

    Raises ValueError when the feature needs a U-Net and there is none.
    """
    if not needs_unet(feature):
        return combined(feature, None, x)
    if unet is None:
        raise ValueError("the Diffusion Noise Feature needs a U-Net")
    return combined(feature, diffusion_noise_feature(unet, x, dnf), x)


def combined(feature: Feature, estimates: Tensor | None, x: Tensor) -> Tensor:
    """Stack the parts of the feature of pictures `x`, given their noise estimates (B, C, H, W) if it has any.

    The parts are in the order of their names; shapes as for `compute_feature`.
    """
    x = x.to(torch.float32)
    return torch.cat([_part(name, estimates, x) for name in feature.split("+")], dim=1)


def _part(name: str, estimates: Tensor | None, x: Tensor) -> Tensor:
    if name == "rgb":
        return x
    if name == "npr":
        return neighbouring_pixel_residuals(x)
    if estimates is None:
        raise ValueError("the Diffusion Noise Feature needs estimates")
    return estimates


def neighbouring_pixel_residuals(x: Tensor) -> Tensor:
    """Return what nearest-neighbour down- and upsampling by two loses of `x` (B, 3, H, W); H, W even.

    Tan et al., "Rethinking the Up-Sampling Operations in CNN-based Generative Network for Generalizable
    Deepfake Detection", CVPR 2024.
    """
    return x - interpolate(interpolate(x, scale_factor=0.5, mode="nearest"), scale_factor=2.0, mode="nearest")
