"""The classifier that a manifest describes."""

from typing import cast

import torch
from torch import Tensor, nn

from detector.bundle.manifest import ClassifierConfig, CooccurrenceConfig, EnsembleConfig, ResNetConfig
from detector.networks.cooccurrences import CooccurrenceClassifier
from detector.networks.resnet import ResNet

#: A classifier that is trained by itself.
Branch = ResNet | CooccurrenceClassifier


class Ensemble(nn.Module):
    """A classifier for each part of the feature, and the weights of their logits: (B, C, H, W) to (B, 1)."""

    def __init__(self, config: EnsembleConfig) -> None:
        super().__init__()
        self._channels = [branch.in_channels for branch in config.branches]
        # The attribute's name is the prefix of the parameters in every classifier.safetensors.
        self.towers = nn.ModuleList(_build_branch(branch) for branch in config.branches)
        self.mix = nn.Linear(len(self._channels), 1)

    @property
    def branches(self) -> list[Branch]:
        """The classifiers, in the order of the channels that they classify."""
        return [cast("Branch", branch) for branch in self.towers]

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, 1) for a batch (B, in_channels, H, W)."""
        parts = x.split(self._channels, dim=1)
        logits = [branch(part).float() for branch, part in zip(self.branches, parts, strict=True)]
        return cast("Tensor", self.mix(torch.cat(logits, dim=1)))


Classifier = Branch | Ensemble


def build_classifier(config: ClassifierConfig) -> Classifier:
    """Return the untrained network that a manifest describes."""
    return Ensemble(config) if isinstance(config, EnsembleConfig) else _build_branch(config)


def _build_branch(config: ResNetConfig | CooccurrenceConfig) -> Branch:
    if isinstance(config, CooccurrenceConfig):
        return CooccurrenceClassifier(config.in_channels)
    return ResNet(config)
