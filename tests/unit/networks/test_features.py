"""Features, the inputs of classifiers, and ensembles of classifiers."""

from copy import deepcopy

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from detector.acceleration.inference import accelerate
from detector.bundle.files import resolve
from detector.bundle.manifest import CooccurrenceConfig, DnfConfig, EnsembleConfig, Manifest, ResNetConfig
from detector.networks.classifiers import Ensemble, build_classifier
from detector.networks.features import (
    combined,
    compute_feature,
    neighbouring_pixel_residuals,
    network_input,
)


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
    config = EnsembleConfig(branches=(ResNetConfig(depth=18, width=8), CooccurrenceConfig()))
    ensemble = build_classifier(config).eval()
    assert isinstance(ensemble, Ensemble)
    x = torch.rand(2, 6, 32, 32)
    first, second = (branch(part) for branch, part in zip(ensemble.branches, x.split(3, dim=1), strict=True))
    weights, offset = ensemble.mix.weight[0], ensemble.mix.bias
    torch.testing.assert_close(ensemble(x), weights[0] * first + weights[1] * second + offset)


def test_an_ensemble_counts_in_whole_grey_levels_whatever_the_precision() -> None:
    """In bfloat16 the residual network is rounded, and the branch that counts co-occurrences is not."""
    torch.manual_seed(0)
    config = EnsembleConfig(branches=(ResNetConfig(depth=18, width=8), CooccurrenceConfig()))
    views = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    x = combined("npr+rgb", None, network_input(views))
    exact = build_classifier(config).eval()
    assert isinstance(exact, Ensemble)
    _, rounded, _ = accelerate(None, deepcopy(exact), torch.device("cpu"), torch.bfloat16)
    counted, residual = exact.branches[1](x[:, 3:]), exact.branches[0](x[:, :3])
    torch.testing.assert_close(rounded.branches[1](x[:, 3:]), counted)
    assert not torch.equal(rounded.branches[0](x[:, :3]).float(), residual)
    assert rounded(x).dtype == torch.float32


def test_an_ensemble_of_an_earlier_version_is_read() -> None:
    """Version 4 wrote one ResNet with the channels of each branch; its weights have the same names."""
    manifest = resolve("default").manifest.model_dump(mode="json")
    former = {"depth": 18, "width": 8, "stem_pool": False, "in_channels": 9, "branches": [3, 3, 3]}
    read = Manifest.model_validate(
        {**manifest, "feature": "dnf+npr+rgb", "dnf": {"timesteps": [0]}, "classifier": former}
    )
    branch = ResNetConfig(depth=18, width=8, stem_pool=False)
    assert read.classifier == EnsembleConfig(branches=(branch, branch, branch))
    alone = {**former, "in_channels": 3, "branches": []}
    read = Manifest.model_validate(
        {**manifest, "feature": "npr", "dnf": {"timesteps": [0]}, "classifier": alone}
    )
    assert read.classifier == branch


@pytest.mark.parametrize(
    ("feature", "branches", "reason"),
    [
        ("npr+rgb", (ResNetConfig(), ResNetConfig(in_channels=6)), "must take the 6 channels"),
        ("npr+npr+rgb", (ResNetConfig(in_channels=6), CooccurrenceConfig()), "a branch for each part"),
        ("dnf+npr", (ResNetConfig(), CooccurrenceConfig()), "must end with rgb"),
    ],
)
def test_an_ensemble_has_a_fitting_branch_for_each_part_of_the_feature(
    feature: str, branches: tuple[ResNetConfig | CooccurrenceConfig, ...], reason: str
) -> None:
    """One with other channels is rejected, and one that counts co-occurrences in residuals."""
    manifest = resolve("default").manifest.model_dump(mode="json")
    fields = {"feature": feature, "dnf": {"timesteps": [0]}, "classifier": EnsembleConfig(branches=branches)}
    with pytest.raises(ValidationError, match=reason):
        Manifest.model_validate({**manifest, **fields})
