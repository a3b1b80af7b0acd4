"""Where a training starts: from its own checkpoint when it resumes, or from a bundle when it fine-tunes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors.torch import load_file

from detector.bundle.files import Bundle
from detector.bundle.manifest import ClassifierConfig, EnsembleConfig, ResNetConfig
from detector.networks.classifiers import Ensemble, build_classifier
from detector.networks.resnet import ResNet
from detector.training.recipe import ClassifierRecipe

CHECKPOINT_FILE = "training.pt"


class CheckpointRejectedError(ValueError):
    """The bundle has no network that the recipe can fine-tune."""


class Stateful(Protocol):
    """A network or an optimizer."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> object:
        """Restore the state."""


def save_checkpoint(folder: Path, parts: Mapping[str, Stateful], record: Mapping[str, Any]) -> None:
    """Write the states of the parts and the `record` of plain numbers, atomically."""
    partial = folder / f"{CHECKPOINT_FILE}.part"
    torch.save({"record": dict(record), **{name: part.state_dict() for name, part in parts.items()}}, partial)
    partial.replace(folder / CHECKPOINT_FILE)


def load_checkpoint(folder: Path, parts: Mapping[str, Stateful]) -> dict[str, Any] | None:
    """Restore the parts and return the record; None if there is no checkpoint.

    Read with `weights_only=True`, so a checkpoint cannot run code. Raises ValueError when it lacks a part.
    """
    path = folder / CHECKPOINT_FILE
    if not path.exists():
        return None
    content = torch.load(path, map_location="cpu", weights_only=True)
    if missing := sorted({*parts, "record"} - content.keys()):
        raise ValueError(f"{path} is the checkpoint of another version: it has no {missing[0]}")
    for name, part in parts.items():
        part.load_state_dict(content[name])
    return dict(content["record"])


def pretrained_network(bundle: Bundle, recipe: ClassifierRecipe) -> ResNet:
    """Return the bundle's network on the feature of `recipe`, in float32; of an ensemble, that branch.

    A network on the noise feature expects the estimates of the bundle's own U-Net. Raises
    `CheckpointRejectedError` when the bundle has no network on this feature, or one of another shape.
    """
    manifest = bundle.manifest
    title, config = f"{manifest.name} {manifest.version}", manifest.classifier
    configs: list[tuple[str, ClassifierConfig]] = [(manifest.feature, config)]
    if isinstance(config, EnsembleConfig):
        configs = list(zip(manifest.feature.split("+"), config.branches, strict=True))
    features = [feature for feature, each in configs if isinstance(each, ResNetConfig)]
    if not features:
        raise CheckpointRejectedError(f"{title} has no residual network")
    if recipe.feature not in features:
        raise CheckpointRejectedError(
            f"{title} has no network on {recipe.feature} alone, but on {', '.join(features)}"
        )
    if "dnf" in recipe.feature and manifest.dnf != recipe.dnf:
        raise CheckpointRejectedError(
            f"{title} was trained on the noise feature of other timesteps or another variant"
        )
    wanted = recipe.feature, recipe.network.model_copy(update={"in_channels": recipe.channels})
    if wanted not in configs:
        raise CheckpointRejectedError(f"{title} has a network of another depth, width or stem")
    network = build_classifier(config)
    network.load_state_dict(load_file(bundle.classifier_path))
    branches = network.branches if isinstance(network, Ensemble) else [network]
    return cast("ResNet", branches[configs.index(wanted)])
