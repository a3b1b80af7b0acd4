"""The denoising of a U-Net."""

import numpy as np
import pytest
import torch

from detector.networks.dnf import signal_levels
from detector.training.denoising import SIGMAS, denoised, denoising_psnr


def test_a_u_net_that_knows_the_noise_gives_the_picture_back() -> None:
    """An oracle that returns the noise that was added, at the timestep of that noise."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1
    noise = torch.randn(clean.shape, generator=generator)
    asked: list[int] = []

    def oracle(x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        assert x.shape == clean.shape
        asked.extend(timesteps.tolist())
        return noise

    torch.testing.assert_close(denoised(oracle, clean + noise * 10 / 127.5, 10), clean, atol=1e-5, rtol=0)
    level = signal_levels()[asked[0]]
    # The timesteps are whole numbers, so the noise of the nearest one differs by a little.
    assert ((1 - level) / level) ** 0.5 * 127.5 == pytest.approx(10, abs=0.5)


def test_a_u_net_that_sees_no_noise_leaves_it() -> None:
    """The PSNR of noise of deviation sigma is 20 log10(255 / sigma): 34.2, 28.1 and 24.6 decibels."""
    pictures = [np.full((64, 64, 3), 128, dtype=np.uint8)] * 2
    figures = denoising_psnr(lambda x, _: torch.zeros_like(x), pictures)
    for sigma in SIGMAS:
        assert figures[sigma] == pytest.approx(20 * np.log10(255 / sigma), abs=0.1)
