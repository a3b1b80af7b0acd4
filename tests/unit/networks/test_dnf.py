"""The numerics of the Diffusion Noise Feature."""

import numpy as np
import pytest
import torch
from torch import Tensor

from detector.bundle.manifest import DnfConfig
from detector.images.thumbnail import saved_picture
from detector.networks.dnf import diffusion_noise_feature, invert, quantised, signal_levels


def scaled(x: Tensor, timesteps: Tensor) -> Tensor:
    """Stand in for a U-Net: a noise estimate that depends on the picture and the timestep."""
    return x * 0.1 + timesteps.float().view(-1, 1, 1, 1) / 1000


def test_the_schedule_is_linear_as_published() -> None:
    """The first signal level is 1 - 1e-4 and the last about 4e-5 (DDPM, section 4)."""
    levels = signal_levels()
    assert levels[0].item() == pytest.approx(1 - 1e-4)
    assert (levels.diff() < 0).all()
    assert levels[-1].item() == pytest.approx(4.04e-5, rel=0.01)


def test_the_first_estimate_is_one_pass_at_timestep_zero() -> None:
    """The variant "first" calls the U-Net once, at t = 0."""
    calls: list[list[int]] = []

    def recording(x: Tensor, timesteps: Tensor) -> Tensor:
        calls.append(timesteps.tolist())
        return scaled(x, timesteps)

    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(diffusion_noise_feature(recording, x, DnfConfig()), x * 0.1)
    assert calls == [[0, 0]]


def test_the_inversion_follows_the_ddim_step() -> None:
    """The second estimate equals a step computed by hand (DDIM equation 12 with eta = 0)."""
    x = torch.rand(1, 3, 8, 8)
    levels = signal_levels()
    first, second = invert(scaled, x, steps=2)
    torch.testing.assert_close(first, x * 0.1)
    a, b = levels[0].item(), levels[500].item()
    clean = (x - (1 - a) ** 0.5 * first) / a**0.5
    moved = b**0.5 * clean + (1 - b) ** 0.5 * first
    torch.testing.assert_close(second, moved * 0.1 + 0.5)


def test_twenty_steps_visit_the_published_timesteps() -> None:
    """The timesteps are 0, 50, ..., 950."""
    visited: list[int] = []

    def recording(x: Tensor, timesteps: Tensor) -> Tensor:
        visited.append(int(timesteps[0]))
        return scaled(x, timesteps)

    invert(recording, torch.rand(1, 3, 8, 8), steps=20)
    assert visited == list(range(0, 1000, 50))


def test_each_variant_keeps_the_estimates_that_it_names() -> None:
    """Each variant selects or combines the estimates of one inversion; "stack" keeps all of them."""
    x = torch.rand(2, 3, 8, 8)
    estimates = invert(scaled, x, steps=4)
    feature = {
        variant: diffusion_noise_feature(scaled, x, DnfConfig(variant=variant, steps=4))
        for variant in ("first", "last", "mean", "stack")
    }
    torch.testing.assert_close(feature["first"], estimates[0])
    torch.testing.assert_close(feature["last"], estimates[-1])
    torch.testing.assert_close(feature["mean"], sum(estimates) / 4)
    assert feature["stack"].shape == (2, DnfConfig(variant="stack", steps=4).channels, 8, 8)


def test_quantisation_loses_negative_noise_like_the_picture_file() -> None:
    """Negative values become 0, values above 1 become 1, and the rest are rounded to bytes."""
    values = quantised(torch.tensor([-0.5, 0.0, 0.1, 0.5, 3.0]))
    torch.testing.assert_close(values * 255, torch.tensor([0.0, 0.0, 26.0, 128.0, 255.0]))


def test_the_saved_picture_and_the_quantised_feature_are_the_same_bytes() -> None:
    """The published pipeline's picture file has exactly the bytes that its classifier reads."""
    dnf = torch.randn(3, 16, 16)
    np.testing.assert_array_equal(
        saved_picture(dnf.numpy()).transpose(2, 0, 1), (quantised(dnf) * 255).round().byte().numpy()
    )
