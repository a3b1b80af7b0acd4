"""Training of the U-Net."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from detector.corpus.corpus import read_corpus
from detector.networks.unet import load_unet, save_unet
from detector.training.recipe import UnetRecipe
from detector.training.unet import build_unet, train_unet


def test_a_saved_unet_has_no_path_of_the_machine(tmp_path: Path) -> None:
    """The folder it was loaded from is not in the configuration."""
    save_unet(build_unet((16, 32), 64), tmp_path / "first")
    save_unet(load_unet(str(tmp_path / "first")), tmp_path / "second")
    assert str(tmp_path) not in (tmp_path / "second" / "config.json").read_text(encoding="utf-8")


def test_a_unet_whose_training_was_interrupted_is_the_same_as_without(
    corpus: Path, tmp_path: Path, interrupted_at: Callable[[str, int], None]
) -> None:
    """Crops, timesteps and noise depend on the step and the seed alone."""

    def train(folder: str) -> torch.Tensor:
        recipe = UnetRecipe(channels=(16, 16), size=32, batch=2, max_steps=6, report_seconds=0)
        return next(train_unet(read_corpus(corpus), tmp_path / folder, recipe).parameters()).detach()

    whole = train("whole")
    interrupted_at("unet_steps_trained", 4)
    with pytest.raises(KeyboardInterrupt):
        train("parts")
    torch.testing.assert_close(train("parts"), whole, rtol=0, atol=0)


def test_training_of_a_unet_resumes(corpus: Path, tmp_path: Path) -> None:
    """A second run with more minutes continues after the steps of the first."""
    recipe = UnetRecipe(channels=(16, 16), size=32, batch=2, minutes=0.02)
    train_unet(read_corpus(corpus), tmp_path, recipe)
    before = json.loads((tmp_path / "unet-curves.json").read_text())["loss"]
    longer = UnetRecipe(channels=(16, 16), size=32, batch=2, minutes=10, max_steps=len(before) + 3)
    train_unet(read_corpus(corpus), tmp_path, longer)
    after = json.loads((tmp_path / "unet-curves.json").read_text())["loss"]
    assert len(after) > len(before) > 0
    assert after[: len(before)] == before


def test_a_unet_learns_to_estimate_noise(corpus: Path, tmp_path: Path) -> None:
    """After 60 steps its loss is well below 1, that of a constant zero."""
    recipe = UnetRecipe((16, 16), size=32, batch=4, minutes=10, max_steps=60, learning_rate=3e-3)
    train_unet(read_corpus(corpus), tmp_path, recipe)
    losses = json.loads((tmp_path / "unet-curves.json").read_text())["loss"]
    assert np.mean(losses[-10:]) < 0.9


def test_a_unet_on_patches_has_the_size_of_the_picture_and_survives_its_folder(tmp_path: Path) -> None:
    """It estimates noise pixel by pixel, at half the resolution, from a documented order of the channels."""
    torch.manual_seed(0)
    unet = build_unet((16, 32), 32, patch=2)
    save_unet(unet, tmp_path)
    loaded = load_unet(tmp_path)
    x, t = torch.randn(2, 3, 32, 48), torch.tensor([3, 40])
    estimate = loaded(x, t)
    assert estimate.shape == x.shape
    torch.testing.assert_close(estimate, unet(x, t))
    patches = torch.stack([x[:, c, y::2, z::2] for c in range(3) for y in (0, 1) for z in (0, 1)], dim=1)
    own = loaded.network(patches, t, return_dict=False)[0]
    torch.testing.assert_close(own[:, 4 * 1 + 2 * 1 + 0], estimate[:, 1, 1::2, 0::2])


def test_a_unet_accepts_any_size_divisible_by_its_levels() -> None:
    """It is fully convolutional."""
    unet = build_unet((16, 32), 32)
    x = torch.zeros(1, 3, 64, 96)
    assert unet(x, torch.zeros(1, dtype=torch.long)).shape == x.shape
