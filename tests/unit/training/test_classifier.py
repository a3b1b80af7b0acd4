"""Training of the classifier."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import structlog
import torch

from detector.bundle.manifest import ResNetConfig
from detector.corpus.corpus import grouped_split, read_corpus
from detector.training.checkpoint import CHECKPOINT_FILE
from detector.training.classifier import train_classifier
from detector.training.recipe import ClassifierRecipe
from detector.training.unet import build_unet


def test_features_of_another_unet_are_not_read_from_the_bank(corpus: Path, tmp_path: Path) -> None:
    """Two U-Nets share the crops of one bank, and each has its own file of features."""
    training, validation = grouped_split(read_corpus(corpus), every=4)
    recipe = ClassifierRecipe(
        network=ResNetConfig(depth=18, width=8), size=32, batch=4, bank=2, max_steps=1, seed=1
    )
    for seed in (1, 2):
        torch.manual_seed(seed)
        unet = build_unet((16, 16), 32)
        train_classifier(unet, training, validation, tmp_path / str(seed), recipe, bank=tmp_path / "bank")
    assert len(list((tmp_path / "bank").glob("dnf-0-*.npy"))) == 2
    assert len(list((tmp_path / "bank").glob("pictures*.npy"))) == 1


def test_two_trainings_with_one_seed_give_the_same_network(corpus: Path, tmp_path: Path) -> None:
    """A training by steps instead of minutes is reproducible."""
    training, validation = grouped_split(read_corpus(corpus), every=4)

    def train(folder: str) -> torch.Tensor:
        recipe = ClassifierRecipe(
            feature="rgb",
            network=ResNetConfig(depth=18, width=8),
            size=32,
            batch=4,
            max_steps=6,
            validate_steps=3,
        )
        return train_classifier(None, training, validation, tmp_path / folder, recipe).network.conv1.weight

    torch.testing.assert_close(train("one"), train("two"), rtol=0, atol=0)


def test_training_of_a_classifier_resumes(corpus: Path, tmp_path: Path) -> None:
    """A longer run continues after the steps of the first; a run that had finished adds none."""
    unet = build_unet((16, 16), 32)
    training, validation = grouped_split(read_corpus(corpus), every=4)

    def train(steps: int) -> dict[str, list[object]]:
        network = ResNetConfig(depth=18, width=8)
        recipe = ClassifierRecipe(network=network, size=32, batch=4, max_steps=steps)
        train_classifier(unet, training, validation, tmp_path, recipe)
        record: dict[str, list[object]] = json.loads((tmp_path / "classifier-curves.json").read_text())
        return record

    first, again, second = train(4), train(4), train(7)
    assert again == first
    assert (len(first["loss"]), len(second["loss"])) == (4, 7)
    assert second["loss"][: len(first["loss"])] == first["loss"]
    assert second["validation"][: len(first["validation"])] == first["validation"]


def test_a_training_that_is_interrupted_and_resumed_gives_the_same_network(
    corpus: Path, tmp_path: Path, interrupted_at: Callable[[str, int], None]
) -> None:
    """Interrupted between two validations, at a report with its checkpoint: no step is lost or repeated."""
    training, validation = grouped_split(read_corpus(corpus), every=4)
    recipe = ClassifierRecipe(
        feature="npr",
        network=ResNetConfig(depth=18, width=8),
        size=32,
        batch=4,
        max_steps=7,
        validate_steps=5,
        report_seconds=0,
    )

    def train(folder: str) -> torch.Tensor:
        return train_classifier(None, training, validation, tmp_path / folder, recipe).network.conv1.weight

    whole = train("whole")
    interrupted_at("classifier_steps_trained", 3)
    with pytest.raises(KeyboardInterrupt):
        train("parts")
    with structlog.testing.capture_logs() as events:
        resumed = train("parts")
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)
    stepped = [event for event in events if "step" in event]
    steps = [(event["event"].removeprefix("classifier_"), event["step"]) for event in stepped]
    trained = "steps_trained"
    assert steps == [("training_started", 3), (trained, 4), ("validated", 5), (trained, 6), ("validated", 7)]
    report = next(event for event in events if event["event"] == "classifier_steps_trained")
    assert report.keys() >= {"loss", "pictures_per_second", "remaining_minutes"}


def test_a_bank_without_a_unet_has_crops_to_cut_from(corpus: Path, tmp_path: Path) -> None:
    """They are half as large again as a view, so that each step can cut new ones."""
    recipe = ClassifierRecipe(
        feature="npr",
        network=ResNetConfig(depth=18, width=8),
        size=32,
        batch=4,
        bank=2,
        max_steps=1,
    )
    training, validation = grouped_split(read_corpus(corpus))
    train_classifier(None, training, validation, tmp_path / "work", recipe, bank=tmp_path / "bank")
    assert np.load(tmp_path / "bank" / "pictures.npy").shape == (2 * len(training), 48, 48, 3)


def test_a_checkpoint_of_another_version_is_refused(corpus: Path, tmp_path: Path) -> None:
    """One that lacks a part is named, instead of being continued in part."""
    recipe = ClassifierRecipe(
        feature="npr", network=ResNetConfig(depth=18, width=8), size=32, batch=4, max_steps=1
    )
    training, validation = grouped_split(read_corpus(corpus))
    train_classifier(None, training, validation, tmp_path, recipe)
    content = torch.load(tmp_path / CHECKPOINT_FILE, weights_only=True)
    del content["families"]
    torch.save(content, tmp_path / CHECKPOINT_FILE)
    with pytest.raises(ValueError, match="another version: it has no families"):
        train_classifier(None, training, validation, tmp_path, recipe)
