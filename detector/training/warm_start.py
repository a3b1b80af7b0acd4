"""A trained network to go on from."""

from safetensors.torch import load_file

from detector.bundle.files import Bundle
from detector.networks.resnet import Ensemble, ResNet, build_classifier
from detector.training.recipe import ClassifierTraining


class CheckpointRejectedError(ValueError):
    """The bundle has no network that the recipe could go on from."""


def trained_network(bundle: Bundle, recipe: ClassifierTraining) -> ResNet:
    """Return the bundle's network on the feature of `recipe`, in float32: of an ensemble, one branch.

    Its noise feature is that of the bundle's own U-Net; with another one the network starts from what it does
    not know. Raises `CheckpointRejectedError` when there is none, or when its shape is another.
    """
    manifest = bundle.manifest
    title = f"{manifest.name} {manifest.version}"
    branches = manifest.feature.split("+") if manifest.classifier.branches else [manifest.feature]
    if recipe.feature not in branches:
        raise CheckpointRejectedError(
            f"{title} has no network on {recipe.feature} alone, but on {', '.join(branches)}"
        )
    if "dnf" in recipe.feature and manifest.dnf != recipe.dnf:
        raise CheckpointRejectedError(
            f"{title} was trained on the noise feature of other timesteps or another variant"
        )
    shape = recipe.network.model_copy(update={"in_channels": recipe.channels})
    if manifest.classifier.model_copy(update={"in_channels": recipe.channels, "branches": ()}) != shape:
        raise CheckpointRejectedError(f"{title} has a network of another depth, width or stem")
    network = build_classifier(manifest.classifier)
    network.load_state_dict(
        {name: value.float() for name, value in load_file(bundle.classifier_path).items()}
    )
    if not isinstance(network, Ensemble):
        return network
    return network.branches[branches.index(recipe.feature)]
