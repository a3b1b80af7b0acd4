"""What a training returns."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detector.networks.classifiers import Branch


@dataclass(frozen=True)
class LeftOutScores:
    """Logits (N,) of pictures, each by a classifier that saw neither its generator nor its source."""

    logits: NDArray[np.float64]
    #: 1 for generated.
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class TrainedClassifier:
    """A trained classifier."""

    #: On the CPU.
    network: Branch
    #: Steps of the whole training; 0 for one that is solved at once.
    steps: int
    #: AUROC of this network on the validation pictures, 0..1.
    validation_auroc: float
    #: For the calibration; None where nothing was left out.
    left_out: LeftOutScores | None = None
