"""A detector without networks, to measure and test everything else."""

import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from detector.bundle.calibration import PlattScaling
from detector.bundle.files import Bundle
from detector.bundle.manifest import DnfConfig, Manifest, Preprocessing, ResNetConfig, UnetSource
from detector.bundle.thresholds import Thresholds
from detector.detector import Detector, Finding, ScoredView
from detector.images.views import PreparedPicture


class NullDetector(Detector):
    """Uses a picture's brightness as its probability; a batch takes `batch_seconds`."""

    device = "none"
    dtype = "none"
    acceleration = "none"

    def __init__(
        self,
        preprocessing: Preprocessing = Preprocessing(mode="crop", size=32, views=1),  # noqa: B008 - frozen
        *,
        batch_seconds: float = 0.0,
    ) -> None:
        manifest = Manifest(
            name="null",
            version="0",
            created="2026-01-01T00:00:00Z",
            preprocessing=preprocessing,
            dnf=DnfConfig(),
            unet=UnetSource(folder="unet"),
            classifier=ResNetConfig(depth=18, width=8),
            calibration=PlattScaling(),
            thresholds=Thresholds(review_from=0.4, generated_from=0.6),
        )
        self.bundle = Bundle(Path(), manifest, "0" * 64)
        self._batch_seconds = batch_seconds

    @classmethod
    def load(cls, *_: Any, **__: Any) -> Self:
        """Return the detector."""
        return cls()

    def warm_up(self, batch_size: int) -> float:
        """Return the rate of full batches."""
        return batch_size / max(self._batch_seconds, 1e-3)

    def examine(self, prepared: Sequence[PreparedPicture]) -> list[Finding]:
        """Return findings by brightness."""
        time.sleep(self._batch_seconds)
        return [null_finding(picture, float(picture.views[0].mean() / 255)) for picture in prepared]


@cache
def _recorded_feature() -> NDArray[np.float32]:
    """Return a photograph's feature (3, 128, 128): noise, which costs what no smooth picture does."""
    with np.load(Path(__file__).parent / "data" / "noise_feature.npz") as file:
        feature: NDArray[np.float32] = file["values"] * file["step"]
        return feature


def null_finding(picture: PreparedPicture, probability: float) -> Finding:
    """Return the finding with a probability, and a feature that the default bundle computed."""
    return Finding(
        logit=0.0,
        probability=probability,
        views=tuple(ScoredView(place, 0.0, probability) for place in picture.places),
        strongest=0,
        dnf=_recorded_feature(),
        dnf_ms=1.0,
        classify_ms=1.0,
    )
