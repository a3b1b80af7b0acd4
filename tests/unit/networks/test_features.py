"""What classifiers look at, and classifiers that stand side by side."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from detector.bundle.calibration import PlattScaling, Thresholds, fit_logistic
from detector.bundle.files import open_bundle, write_manifest
from detector.bundle.manifest import DnfConfig, Manifest, Preprocessing, ResNetConfig
from detector.cli import main
from detector.detector import Detector
from detector.networks.features import compute_feature, neighbouring_pixel_residuals
from detector.networks.resnet import Ensemble, ResNet, build_classifier
from tests.tiny_bundle import make_tiny_bundle


def timestep_everywhere(x: Tensor, timesteps: Tensor) -> Tensor:
    """Stand in for a U-Net: estimate each picture's timestep at each pixel."""
    return timesteps.view(-1, 1, 1, 1).expand_as(x).float()


def test_estimates_at_several_timesteps_are_stacked_in_their_order() -> None:
    """Three channels a timestep."""
    feature = compute_feature(
        "dnf", timestep_everywhere, torch.zeros(2, 3, 4, 4), DnfConfig(timesteps=(0, 40))
    )
    assert feature.shape == (2, 6, 4, 4)
    assert feature[:, :3].unique().tolist() == [0]
    assert feature[:, 3:].unique().tolist() == [40]


def test_the_picture_follows_its_estimates() -> None:
    """The first channels are always the feature, whatever stands behind it."""
    x = torch.rand(1, 3, 4, 4)
    feature = compute_feature("dnf+rgb", timestep_everywhere, x, DnfConfig(timesteps=(7,)))
    assert feature[:, :3].unique().tolist() == [7]
    torch.testing.assert_close(feature[:, 3:], x)


def test_all_parts_stand_in_the_order_of_their_names() -> None:
    """Estimates, residuals, picture: three channels each."""
    x = torch.rand(1, 3, 4, 4)
    feature = compute_feature("dnf+npr+rgb", timestep_everywhere, x, DnfConfig(timesteps=(7,)))
    torch.testing.assert_close(feature[:, 3:6], neighbouring_pixel_residuals(x))
    torch.testing.assert_close(feature[:, 6:], x)


def test_a_noise_feature_without_a_u_net_is_an_error() -> None:
    """Nothing is made up in its place."""
    with pytest.raises(ValueError, match="needs a U-Net"):
        compute_feature("dnf", None, torch.zeros(1, 3, 4, 4), DnfConfig())


def test_residuals_are_what_nearest_neighbours_lose() -> None:
    """In each block of two by two the first pixel is kept by halving, and is taken from the four."""
    block = torch.tensor([[1.0, 2.0], [4.0, 8.0]])
    x = block.repeat(2, 2).expand(1, 3, 4, 4)
    residual = neighbouring_pixel_residuals(x)
    torch.testing.assert_close(residual[0, 0, :2, :2], torch.tensor([[0.0, 1.0], [3.0, 7.0]]))
    torch.testing.assert_close(residual[0, 0, 2:, 2:], residual[0, 0, :2, :2])


def test_an_ensemble_weighs_the_logits_of_networks_on_their_own_channels() -> None:
    """The logit is the weighted sum of what each network says of its channels alone."""
    torch.manual_seed(0)
    config = ResNetConfig(depth=18, width=8, in_channels=6, branches=(3, 3))
    ensemble = build_classifier(config).eval()
    assert isinstance(ensemble, Ensemble)
    x = torch.rand(2, 6, 32, 32)
    first, second = (branch(part) for branch, part in zip(ensemble.branches, x.split(3, dim=1), strict=True))
    weights, offset = ensemble.mix.weight[0], ensemble.mix.bias
    torch.testing.assert_close(ensemble(x), weights[0] * first + weights[1] * second + offset)


def test_branches_must_share_all_channels() -> None:
    """A bundle whose branches leave a channel out is malformed."""
    with pytest.raises(ValidationError, match="share all channels"):
        ResNetConfig(in_channels=6, branches=(3,))


def test_logistic_regression_finds_the_weights_that_made_the_labels() -> None:
    """Two values with weights 2 and -1: the fit is near them on ten thousand draws."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(10_000, 2))
    chances = 1 / (1 + np.exp(-(2 * values[:, 0] - values[:, 1])))
    weights = fit_logistic(values, (rng.random(10_000) < chances).astype(np.int64))
    np.testing.assert_allclose(weights, [2, -1, 0], atol=0.1)


def _rgb_bundle(folder: Path, preprocessing: Preprocessing) -> Path:
    folder.mkdir()
    torch.manual_seed(3)
    classifier = ResNetConfig(depth=18, width=8)
    save_file(ResNet(classifier).state_dict(), folder / "classifier.safetensors")
    manifest = Manifest(
        name="pictures",
        version="0",
        created="2026-01-01T00:00:00Z",
        preprocessing=preprocessing,
        feature="rgb",
        dnf=DnfConfig(),
        unet=None,
        classifier=classifier,
        calibration=PlattScaling(),
        thresholds=Thresholds(review_from=0.4, generated_from=0.6),
    )
    return write_manifest(folder, manifest).folder


def _corpus(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = [["path", "label", "family"]]
    for index in range(24):
        family = ("camera", "phone", "gan", "diffusion")[index % 4]
        pixels = rng.integers(0, 256 if index % 4 < 2 else 128, (80, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        rows.append([f"{index}.png", "real" if index % 4 < 2 else "generated", family])
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def test_two_bundles_are_fused_on_held_out_families(tmp_path: Path) -> None:
    """`train fuse` writes one bundle whose logit is the weighted sum of the two bundles' logits."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    estimates = make_tiny_bundle(tmp_path / "dnf")
    preprocessing = open_bundle(estimates).manifest.preprocessing
    pictures = _rgb_bundle(tmp_path / "rgb", preprocessing)
    out = tmp_path / "fused"
    command = ["train", "fuse", str(_corpus(corpus)), str(estimates), str(pictures), "--out", str(out)]
    result = CliRunner().invoke(main, [*command, "--hold-out", "phone", "--hold-out", "diffusion"])
    assert result.exit_code == 0, result.output
    fused = open_bundle(out)
    weights = fused.manifest.provenance["fusion_weights"]
    assert isinstance(weights, dict)
    pixels = np.random.default_rng(1).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    logits = []
    for folder in (estimates, pictures, out):
        detector = Detector.load(folder)
        logits.append(detector.examine([detector.prepare(pixels)])[0].logit)
    offset = float(load_file(out / "classifier.safetensors")["mix.bias"])
    expected = weights["dnf"] * logits[0] + weights["rgb"] * logits[1] + offset  # type: ignore[operator]
    # The fused bundle rounds the kernels of these two, which are stored in float32, to float16.
    assert logits[2] == pytest.approx(expected, abs=5e-3)


def test_bundles_that_do_not_fit_are_not_fused(tmp_path: Path) -> None:
    """Two noise features cannot be branches of one detector; the error says what is wanted."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    bundle = str(make_tiny_bundle(tmp_path / "dnf"))
    command = ["train", "fuse", str(_corpus(corpus)), bundle, bundle, "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, [*command, "--hold-out", "phone"])
    assert result.exit_code == 2
    assert "must be dnf, then npr, rgb or both" in result.output
