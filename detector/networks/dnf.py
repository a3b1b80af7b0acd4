"""The Diffusion Noise Feature: the noise that a pretrained diffusion U-Net estimates on a clean picture.

Zhang and Xu, "Diffusion Noise Feature: Accurate and Fast Generated Image Detection", arXiv 2312.02625.
The published code and version 3 of the paper keep the first estimate; version 1 combines the estimates
along a DDIM inversion (Song et al., "Denoising Diffusion Implicit Models", ICLR 2021, equation 12 with
eta = 0, from the picture towards the noise).
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from detector.bundle.manifest import DnfConfig

TRAINING_TIMESTEPS = 1000


class NoiseEstimator(Protocol):
    """A diffusion U-Net: pictures (B, 3, H, W) in -1..1 and timesteps (B,) to noise (B, 3, H, W)."""

    def __call__(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Return the estimated noise."""


@runtime_checkable
class SharingNoiseEstimator(NoiseEstimator, Protocol):
    """A `NoiseEstimator` that computes once what several timesteps have in common."""

    def estimates(self, x: Tensor, timesteps: Sequence[Tensor]) -> list[Tensor]:
        """Return the estimated noise at each of `timesteps` (1,)."""


def signal_levels(device: torch.device | str = "cpu") -> Tensor:
    """Return the cumulative products of 1 - beta, (1000,) float64, for linear betas from 1e-4 to 0.02."""
    betas = torch.linspace(1e-4, 0.02, TRAINING_TIMESTEPS, dtype=torch.float64, device=device)
    return torch.cumprod(1 - betas, dim=0)


def diffusion_noise_feature(unet: NoiseEstimator, x: Tensor, config: DnfConfig) -> Tensor:
    """Compute the feature of clean pictures `x` (B, 3, H, W) in -1..1: (B, channels, H, W) float32.

    The U-Net's output is kept unbounded; where the U-Net sees noise, its scale is about one.
    """
    if config.variant == "first":
        return torch.cat(_estimates(unet, x, config.timesteps), dim=1)
    estimates = invert(unet, x, config.steps)
    if config.variant == "last":
        return estimates[-1]
    if config.variant == "mean":
        return torch.stack(estimates).mean(dim=0)
    return torch.cat(estimates, dim=1)


def invert(unet: NoiseEstimator, x: Tensor, steps: int) -> list[Tensor]:
    """Return the noise estimates, `steps` of (B, 3, H, W), along the DDIM inversion of clean pictures.

    The timesteps are the first `steps` values of `linspace(0, 1000, steps + 1)`, as integers.
    """
    levels = signal_levels(x.device)
    schedule = torch.linspace(0, TRAINING_TIMESTEPS, steps + 1, dtype=torch.float64).long().tolist()
    estimates: list[Tensor] = []
    for t, t_next in zip(schedule[:-1], [*schedule[1:-1], None], strict=True):
        noise = _estimate(unet, x, t)
        estimates.append(noise)
        if t_next is None:
            break
        a, a_next = levels[t].item(), levels[t_next].item()
        clean = (x - (1 - a) ** 0.5 * noise) / a**0.5
        x = a_next**0.5 * clean + (1 - a_next) ** 0.5 * noise
    return estimates


def quantised(dnf: Tensor) -> Tensor:
    """Round the feature as the published pipeline's picture file does: `clamp(dnf * 255 + 0.5, 0, 255)`.

    Returns the bytes divided by 255, in the same shape; negative noise becomes 0.
    """
    return dnf.mul(255).add(0.5).clamp(0, 255).to(torch.uint8).float() / 255


def _estimates(unet: NoiseEstimator, x: Tensor, timesteps: Sequence[int]) -> list[Tensor]:
    if isinstance(unet, SharingNoiseEstimator):
        each = [torch.tensor([t], device=x.device) for t in timesteps]
        return [estimate.float() for estimate in unet.estimates(x, each)]
    return [_estimate(unet, x, t) for t in timesteps]


def _estimate(unet: NoiseEstimator, x: Tensor, t: int) -> Tensor:
    timesteps = torch.full((x.shape[0],), t, dtype=torch.long, device=x.device)
    return unet(x, timesteps).float()
