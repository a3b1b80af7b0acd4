"""Bundles of several features fused to one ensemble."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from detector.bundle.calibration import PlattScaling
from detector.bundle.files import open_bundle, write_manifest
from detector.bundle.manifest import DnfConfig, Manifest, Preprocessing, ResNetConfig
from detector.bundle.thresholds import Thresholds
from detector.cli import main
from detector.detector import Detector
from detector.networks.resnet import ResNet
from tests.tiny_bundle import make_tiny_bundle


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


def test_two_bundles_are_fused(tmp_path: Path) -> None:
    """The log-odds of the ensemble are the mean of those of its branches; it shows the noise feature."""
    estimates = make_tiny_bundle(tmp_path / "dnf")
    manifest = open_bundle(estimates).manifest
    write_manifest(estimates, manifest.model_copy(update={"calibration": PlattScaling(slope=2, offset=0.5)}))
    pictures = _rgb_bundle(tmp_path / "rgb", manifest.preprocessing)
    out = tmp_path / "fused"
    result = CliRunner().invoke(main, ["train", "fuse", str(estimates), str(pictures), "--out", str(out)])
    assert result.exit_code == 0, result.output
    fused = open_bundle(out).manifest
    assert fused.feature == "dnf+rgb"
    assert fused.thresholds.generated_from == max(manifest.thresholds.generated_from, 0.6)
    pixels = np.random.default_rng(1).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    found = []
    for folder in (estimates, pictures, out):
        detector = Detector.load(folder)
        found.append(detector.examine([detector.prepare(pixels)])[0])
    expected = (2 * found[0].logit + 0.5 + found[1].logit) / 2
    # Fusing rounds the convolutions of both bundles, which are stored in float32, to float16.
    assert found[2].logit == pytest.approx(expected, abs=5e-3)
    np.testing.assert_allclose(found[2].dnf, found[0].dnf, atol=2e-2)


def test_bundles_that_do_not_fit_are_not_fused(tmp_path: Path) -> None:
    """Two noise features cannot be branches of one ensemble; the error names the possible features."""
    bundle = str(make_tiny_bundle(tmp_path / "dnf"))
    result = CliRunner().invoke(main, ["train", "fuse", bundle, bundle, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "must be two or more of dnf, npr and rgb" in " ".join(result.output.split())
