"""Recipes: how the U-Net and the classifier are trained, in this project's way or in the paper's."""

from dataclasses import dataclass, replace
from typing import Literal

from detector.bundle.manifest import (
    ClassifierConfig,
    CooccurrenceConfig,
    DnfConfig,
    Feature,
    Preprocessing,
    ResNetConfig,
    feature_channels,
)
from detector.progress import REPORT_SECONDS
from detector.training.augmentation import CHAINS, Augmentation, SquashAndFlip

ClassifierKind = Literal["resnet", "cooccurrences"]
#: Squares of each picture in which co-occurrences are counted.
SQUARES = 3
OWN_RESNET = ResNetConfig(depth=18, width=32, stem_pool=False)
FIRST_ESTIMATE = DnfConfig()


@dataclass(frozen=True)
class UnetRecipe:
    """How a U-Net is trained."""

    #: Channels of each level, finest first.
    channels: tuple[int, ...] = (16, 32, 64, 96)
    #: Side of the patches that the first convolution sees as one pixel: 1 or 2.
    patch: int = 1
    #: Side of a crop in pixels.
    size: int = 64
    batch: int = 32
    #: Wall-clock time after which training ends.
    minutes: float = 60.0
    #: Number of steps, instead of minutes; makes the training reproducible.
    max_steps: int | None = None
    learning_rate: float = 8e-4
    #: This share of the timesteps, 0..1, is drawn below `low_timesteps`.
    low_timesteps: int = 100
    low_share: float = 0.7
    #: Decay of the averaged weights.
    ema: float = 0.998
    seed: int = 1
    #: Seconds between two reports, each with a checkpoint.
    report_seconds: float = REPORT_SECONDS
    device: str = "cpu"
    #: Processes that make batches.
    loaders: int = 1

    def progress(self, steps: int, seconds: float) -> float:
        """Return the share of the budget that `steps` in `seconds` have used up; the end is at 1."""
        return _progress(self.minutes, self.max_steps, steps, seconds)


@dataclass(frozen=True)
class ClassifierRecipe:
    """How a classifier is trained."""

    feature: Feature = "dnf"
    #: A residual network, trained in steps, or a linear one on co-occurrences, solved at once.
    kind: ClassifierKind = "resnet"
    #: The shape of a residual network.
    network: ResNetConfig = OWN_RESNET
    dnf: DnfConfig = FIRST_ESTIMATE
    mode: Literal["crop", "squash"] = "crop"
    #: Side of a crop in pixels.
    size: int = 128
    #: Name of the augmentation of a crop, one of `CHAINS`.
    chain: str = "mild"
    #: Kinds of generated twins that are made of photographs, of `TWINS`.
    twins: tuple[str, ...] = ()
    #: Views of a picture that the finished bundle scores: 1, 4, 9 or 16.
    views: int = 9
    #: Pictures in a batch, half of each class.
    batch: int = 32
    #: Crops of each picture, drawn once and stored; 0 draws new ones at each step.
    bank: int = 0
    #: Wall-clock time after which training ends.
    minutes: float = 60.0
    #: Number of steps, instead of minutes; makes the training reproducible.
    max_steps: int | None = None
    optimizer: Literal["adamw", "adam"] = "adamw"
    #: "cosine" anneals the learning rate to zero and stops early after `patience` validations. "plateau"
    #: divides the rate by ten instead, and stops below 1e-6, as published.
    schedule: Literal["cosine", "plateau"] = "cosine"
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    #: Weight of the loss of a second output, which names the family and is not kept; 0 trains without it.
    family_weight: float = 0.3
    #: Decay of the averaged weights; 0 disables averaging.
    ema: float = 0.998
    #: Validations without a better AUROC; None trains to the end.
    patience: int | None = None
    validate_steps: int = 200
    seed: int = 1
    #: Seconds between two reports, each with a checkpoint.
    report_seconds: float = REPORT_SECONDS
    device: str = "cpu"
    #: Processes that make batches.
    loaders: int = 1

    @property
    def preprocessing(self) -> Preprocessing:
        """How the bundle turns pictures into views."""
        return Preprocessing(mode=self.mode, size=self.size, views=self.views if self.mode == "crop" else 1)

    @property
    def augmentation(self) -> Augmentation:
        """The codec chain, or the published squash and flip."""
        return CHAINS[self.chain] if self.mode == "crop" else SquashAndFlip()

    @property
    def channels(self) -> int:
        """Number of channels of the classifier's input."""
        return sum(feature_channels(self.feature, self.dnf))

    @property
    def classifier_config(self) -> ClassifierConfig:
        """The classifier that a bundle describes."""
        if self.kind == "cooccurrences":
            return CooccurrenceConfig(in_channels=self.channels)
        return self.network.model_copy(update={"in_channels": self.channels})

    def progress(self, steps: int, seconds: float) -> float:
        """Return the share of the budget that `steps` in `seconds` have used up; the end is at 1."""
        return _progress(self.minutes, self.max_steps, steps, seconds)


def _progress(minutes: float, max_steps: int | None, steps: int, seconds: float) -> float:
    return seconds / (minutes * 60) if max_steps is None else steps / max_steps


def paper_recipe(recipe: ClassifierRecipe) -> ClassifierRecipe:
    """Return the published recipe with the budget, the seed, the feature and the device of `recipe`.

    Zhang and Xu, arXiv 2312.02625, and their code: the whole picture squashed to 256 x 256, the first
    estimate clamped and quantised, ResNet-50 from scratch, Adam at 1e-4, batches of 64, the rate divided by
    ten after five validations without an improvement, down to 1e-6. Without a codec chain the file format
    can predict the label, so read its figures together with the format controls.
    """
    return replace(
        recipe,
        network=ResNetConfig(depth=50),
        dnf=DnfConfig(quantise=True),
        mode="squash",
        size=256,
        views=1,
        batch=64,
        optimizer="adam",
        schedule="plateau",
        learning_rate=1e-4,
        weight_decay=0.0,
        family_weight=0.0,
        ema=0.0,
        patience=5,
    )
