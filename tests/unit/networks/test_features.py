"""Features, the inputs of classifiers, and ensembles of classifiers."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from detector.bundle.manifest import DnfConfig, ResNetConfig
from detector.networks.classifiers import build_classifier
from detector.networks.features import compute_feature, neighbouring_pixel_residuals
from detector.networks.resnet import Ensemble


def timestep_everywhere(x: Tensor, timesteps: Tensor) -> Tensor:
    """Stand in for a U-Net: estimate each picture's timestep at each pixel."""
    return timesteps.view(-1, 1, 1, 1).expand_as(x).float()


def test_estimates_at_several_timesteps_are_stacked_in_their_order() -> None:
    """The feature has three channels for each timestep."""
    feature = compute_feature(
        "dnf", timestep_everywhere, torch.zeros(2, 3, 4, 4), DnfConfig(timesteps=(0, 40))
    )
    assert feature.shape == (2, 6, 4, 4)
    assert feature[:, :3].unique().tolist() == [0]
    assert feature[:, 3:].unique().tolist() == [40]


def test_the_picture_follows_its_estimates() -> None:
    """In "dnf+rgb" the noise feature comes first and the picture last."""
    x = torch.rand(1, 3, 4, 4)
    feature = compute_feature("dnf+rgb", timestep_everywhere, x, DnfConfig(timesteps=(7,)))
    assert feature[:, :3].unique().tolist() == [7]
    torch.testing.assert_close(feature[:, 3:], x)


def test_all_parts_are_in_the_order_of_their_names() -> None:
    """Noise estimates, residuals and picture have three channels each."""
    x = torch.rand(1, 3, 4, 4)
    feature = compute_feature("dnf+npr+rgb", timestep_everywhere, x, DnfConfig(timesteps=(7,)))
    torch.testing.assert_close(feature[:, 3:6], neighbouring_pixel_residuals(x))
    torch.testing.assert_close(feature[:, 6:], x)


def test_a_noise_feature_without_a_u_net_is_an_error() -> None:
    """The feature is not replaced by another one."""
    with pytest.raises(ValueError, match="needs a U-Net"):
        compute_feature("dnf", None, torch.zeros(1, 3, 4, 4), DnfConfig())


def test_residuals_are_what_nearest_neighbour_resampling_loses() -> None:
    """Downsampling keeps the first pixel of each 2x2 block, which is subtracted from all four."""
    block = torch.tensor([[1.0, 2.0], [4.0, 8.0]])
    x = block.repeat(2, 2).expand(1, 3, 4, 4)
    residual = neighbouring_pixel_residuals(x)
    torch.testing.assert_close(residual[0, 0, :2, :2], torch.tensor([[0.0, 1.0], [3.0, 7.0]]))
    torch.testing.assert_close(residual[0, 0, 2:, 2:], residual[0, 0, :2, :2])


def test_an_ensemble_weights_the_logits_of_its_branches() -> None:
    """The logit is the weighted sum of the logits that the branches compute on their own channels."""
    torch.manual_seed(0)
    config = ResNetConfig(depth=18, width=8, in_channels=6, branches=(3, 3))
    ensemble = build_classifier(config).eval()
    assert isinstance(ensemble, Ensemble)
    x = torch.rand(2, 6, 32, 32)
    first, second = (branch(part) for branch, part in zip(ensemble.branches, x.split(3, dim=1), strict=True))
    weights, offset = ensemble.mix.weight[0], ensemble.mix.bias
    torch.testing.assert_close(ensemble(x), weights[0] * first + weights[1] * second + offset)


def test_branches_must_share_all_channels() -> None:
    """A configuration whose branches leave a channel out is rejected."""
    with pytest.raises(ValidationError, match="share all channels"):
        ResNetConfig(in_channels=6, branches=(3,))
