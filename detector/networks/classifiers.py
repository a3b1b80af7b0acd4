"""The classifier that a manifest describes."""

from detector.bundle.manifest import ClassifierConfig, CooccurrenceConfig
from detector.networks.cooccurrences import CooccurrenceClassifier
from detector.networks.resnet import Ensemble, ResNet

Classifier = ResNet | Ensemble | CooccurrenceClassifier


def build_classifier(config: ClassifierConfig) -> Classifier:
    """Return the untrained network that a manifest describes."""
    if isinstance(config, CooccurrenceConfig):
        return CooccurrenceClassifier(config.in_channels)
    return Ensemble(config) if config.branches else ResNet(config)
