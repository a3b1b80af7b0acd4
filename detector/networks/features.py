"""What a classifier may look at: the Diffusion Noise Feature, or what it is compared with."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from detector.bundle.manifest import DnfConfig, Feature, needs_unet
from detector.networks.dnf import NoiseEstimator, diffusion_noise_feature


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
    """Return the feature of pictures `x` whose noise estimates (B, C, H, W) are known; see `compute_feature`.

    Its parts are stacked in the order of their names.
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
    """Return what halving and doubling by nearest neighbours loses of `x` (B, 3, H, W); H and W are even.

    Tan et al., "Rethinking the Up-Sampling Operations in CNN-based Generative Network for Generalizable
    Deepfake Detection", CVPR 2024.
    """
    return x - interpolate(interpolate(x, scale_factor=0.5, mode="nearest"), scale_factor=2.0, mode="nearest")
