"""How well a U-Net denoises: a yardstick of the noise feature that does not depend on a classifier."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detector.networks.dnf import NoiseEstimator, signal_levels

#: Standard deviations of the noise, of 255 grey levels.
SIGMAS = (5, 10, 15)


@torch.inference_mode()
def denoised(unet: NoiseEstimator, noisy: Tensor, sigma: float) -> Tensor:
    """Remove Gaussian noise of `sigma` (of 255) from pictures (B, 3, H, W) in -1..1 in one step.

    The U-Net is asked at the timestep whose noise is nearest, for the picture scaled as in its training.
    """
    levels = signal_levels(noisy.device)
    deviation = sigma / 127.5
    t = int((((1 - levels) / levels).sqrt() - deviation).abs().argmin())
    timesteps = torch.full((len(noisy),), t, dtype=torch.long, device=noisy.device)
    return noisy - deviation * unet(noisy * levels[t].sqrt().float(), timesteps).float()


def denoising_psnr(
    unet: NoiseEstimator, pictures: Sequence[NDArray[np.uint8]], device: str = "cpu", seed: int = 0
) -> dict[int, float]:
    """Return the mean PSNR in decibels of denoised pictures (H, W, 3) by the `sigma` of their noise.

    The sides must be divisible as the U-Net's levels require. The noise is the same in every run.
    """
    figures: dict[int, float] = {}
    for sigma in SIGMAS:
        values: list[float] = []
        for number, picture in enumerate(pictures):
            clean = torch.from_numpy(picture.transpose(2, 0, 1).astype(np.float32))[None] / 127.5 - 1
            noise = np.random.default_rng([seed, sigma, number]).standard_normal(clean.shape)
            noisy = clean + torch.from_numpy(noise).float() * (sigma / 127.5)
            result = denoised(unet, noisy.to(device), sigma).cpu().clamp(-1, 1)
            values.append(psnr(result, clean))
        figures[sigma] = float(np.mean(values))
    return figures


def psnr(result: Tensor, clean: Tensor) -> float:
    """Return the peak signal-to-noise ratio of two pictures in -1..1, in decibels."""
    error = float((result - clean).square().mean())
    return float(10 * np.log10(4 / max(error, 1e-12)))
