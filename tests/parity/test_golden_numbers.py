"""Parity with the DNF authors' own code, on generated weights and pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from detector.bundle.files import Bundle, resolve
from detector.cli import main
from detector.detector import Detector
from detector.networks.conversion import convert
from detector.networks.dnf import quantised
from tests.golden import golden_arrays, golden_pictures, write_checkpoints

TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=["small", "lsun_bedroom"])
def network(request: pytest.FixtureRequest) -> str:
    """Return the golden network's name: a small one, or the published size of 113.67 M parameters."""
    return str(request.param)


@pytest.fixture(scope="module")
def bundle(network: str, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Convert the golden checkpoints as a user would."""
    folder = tmp_path_factory.mktemp("golden")
    return convert(*write_checkpoints(network, folder), folder / "bundle")


@pytest.fixture(scope="module")
def detector(bundle: Bundle) -> Detector:
    """Load the converted bundle in float32."""
    return Detector.load(bundle, device="cpu", dtype="float32")


def test_the_input_agrees_with_the_authors(network: str, detector: Detector) -> None:
    """The squashed input equals the golden one within 1e-4."""
    arrays = golden_arrays(network)
    prepared = np.concatenate([detector.prepare(picture).views for picture in golden_pictures(arrays)])
    size = detector.bundle.manifest.preprocessing.size
    assert prepared.shape[1:] == (3, size, size)
    if arrays["model_input"].size:  # stored for the small network only
        assert np.abs(prepared - arrays["model_input"]).max() < TOLERANCE


def test_the_feature_the_saved_picture_and_the_logit_agree(network: str, detector: Detector) -> None:
    """The feature and the logit equal the golden ones within 1e-4; saved bytes differ only by rounding."""
    arrays = golden_arrays(network)
    prepared = [detector.prepare(picture) for picture in golden_pictures(arrays)]
    with torch.inference_mode():
        raw = detector.feature(torch.from_numpy(np.concatenate([picture.views for picture in prepared])))
    assert np.abs(raw.numpy() - arrays["dnf"]).max() < TOLERANCE
    saved = (quantised(raw) * 255).round().numpy().transpose(0, 2, 3, 1)
    difference = np.abs(saved - arrays["saved_picture"].astype(np.float32))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3
    logits = np.array([finding.logit for finding in detector.examine(prepared)])
    assert np.abs(logits - arrays["resnet50_logit"].ravel()).max() < TOLERANCE


def test_bfloat16_stays_within_its_stated_tolerance(network: str, bundle: Bundle) -> None:
    """In bfloat16 the logits of the golden pictures change by less than 0.05."""
    arrays = golden_arrays(network)
    half = Detector.load(bundle, device="cpu", dtype="bfloat16")
    findings = half.examine([half.prepare(picture) for picture in golden_pictures(arrays)])
    logits = np.array([finding.logit for finding in findings])
    assert np.abs(logits - arrays["resnet50_logit"].ravel()).max() < 0.05


def test_convert_and_check_give_the_golden_logits_from_the_command_line(tmp_path: Path) -> None:
    """`convert`, then `check --json`, prints the golden logits of the small network within 1e-4."""
    ddim, config, classifier = write_checkpoints("small", tmp_path)
    arrays = golden_arrays("small")
    for index, picture in enumerate(golden_pictures(arrays)):
        Image.fromarray(picture).save(tmp_path / f"{index}.png")
    options = ["--ddim", ddim, "--unet-config", config, "--classifier", classifier, "--out", tmp_path / "b"]
    converted = CliRunner().invoke(main, ["convert", *map(str, options)])
    assert converted.exit_code == 0, converted.output
    manifest = resolve(tmp_path / "b").manifest
    assert manifest.preprocessing.mode == "squash"
    assert manifest.dnf.quantise
    files = [str(tmp_path / f"{index}.png") for index in range(3)]
    checked = CliRunner().invoke(main, ["check", "--json", "--bundle", str(tmp_path / "b"), *files])
    assert checked.exit_code == 0, checked.output
    logits = np.array([json.loads(line)["logit"] for line in checked.stdout.splitlines()])
    assert np.abs(logits - arrays["resnet50_logit"].ravel()).max() < TOLERANCE
