"""How a classifier is trained: the project's own recipe, and the paper's."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from detector.bundle.manifest import DnfConfig, Feature, Preprocessing, ResNetConfig, feature_channels
from detector.training.augmentation import CodecChain
from detector.training.batches import History

OWN_RESNET = ResNetConfig(depth=18, width=32, stem_pool=False)
FIRST_ESTIMATE = DnfConfig()


@dataclass(frozen=True)
class ClassifierTraining:
    """The recipe of a classifier.

    `size` of crops in pixels; `views`, 1, 4, 9 or 16, that a picture is judged by; `batch` pictures, half of
    each class; training ends after `minutes` of wall clock, or after `max_steps` if given: with steps it is
    reproducible. `bank` crops are drawn once and kept with their features; with 0 every step draws new ones.
    `schedule` "cosine" anneals the learning rate to zero and ends after `patience` validations without a
    better AUROC; "plateau" then divides the rate by ten instead, and ends below 1e-6, as published. `ema`
    averages the weights over steps, 0 to switch it off. `loaders` processes make the batches.
    """

    feature: Feature = "dnf"
    network: ResNetConfig = OWN_RESNET
    dnf: DnfConfig = FIRST_ESTIMATE
    mode: Literal["crop", "squash"] = "crop"
    size: int = 128
    views: int = 9
    batch: int = 32
    bank: int = 0
    minutes: float = 60.0
    max_steps: int | None = None
    optimizer: Literal["adamw", "adam"] = "adamw"
    schedule: Literal["cosine", "plateau"] = "cosine"
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    ema: float = 0.99
    patience: int | None = None
    validate_steps: int = 200
    seed: int = 1
    device: str = "cpu"
    loaders: int = 1

    @property
    def preprocessing(self) -> Preprocessing:
        """How the bundle's pictures become views."""
        return Preprocessing(mode=self.mode, size=self.size, views=self.views if self.mode == "crop" else 1)

    @property
    def history(self) -> History:
        """What pictures go through in training: the codec chain, or the paper's squash and flip."""
        return CodecChain() if self.mode == "crop" else SquashAndFlip()

    @property
    def channels(self) -> int:
        """How many channels the classifier sees."""
        return sum(feature_channels(self.feature, self.dnf))


def paper_recipe(recipe: ClassifierTraining) -> ClassifierTraining:
    """Return the published recipe with the budget, the seed, the feature and the device of `recipe`.

    Zhang and Xu, arXiv 2312.02625, and their code: the whole picture squashed to 256 x 256, the first
    estimate clamped and quantised, ResNet-50 from scratch, Adam at 1e-4, batches of 64, the rate divided by
    ten after five validations without a better figure, down to 1e-6. There is no codec chain: the file
    format is left to predict the label, so its figures need the format controls beside them.
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
        ema=0.0,
        patience=5,
    )


@dataclass(frozen=True)
class SquashAndFlip:
    """The published augmentation: the whole picture at `size` x `size`, mirrored half of the time.

    Bicubic with antialiasing in whole grey levels; the published resize keeps the fractions.
    """

    def __call__(self, pixels: NDArray[np.uint8], size: int, rng: Generator) -> NDArray[np.uint8]:
        """Return (size, size, 3) of `pixels` (H, W, 3)."""
        squashed = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))
        return np.ascontiguousarray(squashed[:, ::-1] if rng.random() < 0.5 else squashed)  # noqa: PLR2004
