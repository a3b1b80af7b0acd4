"""Bundles of several features fused to one ensemble."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file

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
    # Fusing rounds the convolutions of both bundles, which are stored in float32, to float16.
    rounding = 2e-3 * (abs(weights["dnf"]) + abs(weights["rgb"]))  # type: ignore[arg-type]
    assert logits[2] == pytest.approx(expected, abs=rounding)


def test_bundles_that_do_not_fit_are_not_fused(tmp_path: Path) -> None:
    """Two noise features cannot be branches of one ensemble; the error names the possible features."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    bundle = str(make_tiny_bundle(tmp_path / "dnf"))
    command = ["train", "fuse", str(_corpus(corpus)), bundle, bundle, "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, [*command, "--hold-out", "phone"])
    assert result.exit_code == 2
    assert "must be dnf, then npr, rgb or both" in result.output
