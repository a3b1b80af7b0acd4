"""Measure a detector on a labelled corpus: per family and over all."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from io import BytesIO
from typing import Literal

import numpy as np
from PIL import Image

from detector.detector import Detector
from detector.images import decode
from detector.metrics import (
    auroc,
    average_precision,
    bootstrap_auroc,
    expected_calibration_error,
    tpr_at_fpr,
)
from detector.training.corpus import Sample

FormatControl = Literal["as_is", "alike", "swapped"]

_BATCH = 16


@dataclass(frozen=True)
class Scored:
    """One picture's truth, its family, its logit and its calibrated probability of *generated*, 0..1."""

    generated: bool
    family: str
    logit: float
    probability: float


@dataclass(frozen=True)
class Figures:
    """The figures over a set of pictures; rates are in 0..1, `auroc_low` and `auroc_high` a 95 % interval.

    `real_accused` is the share of real photographs called generated at the bundle's thresholds, and
    `generated_found` the share of generated pictures called so.
    """

    real: int
    generated: int
    auroc: float
    auroc_low: float
    auroc_high: float
    average_precision: float
    balanced_accuracy: float
    tpr_at_fpr_1: float
    tpr_at_fpr_5: float
    calibration_error: float
    real_accused: float
    generated_found: float

    def rounded(self) -> dict[str, float]:
        """Return the figures by name, rounded to three places."""
        return {name: round(value, 3) for name, value in asdict(self).items()}


def score_samples(
    detector: Detector,
    samples: Iterable[Sample],
    *,
    control: FormatControl = "as_is",
    progress: Callable[[int], None] = lambda _: None,
) -> list[Scored]:
    """Score every picture.

    `control` "alike" re-encodes all of them as JPEG of quality 90; "swapped" gives the reals a lossless
    copy and the generated ones JPEG of quality 85: a detector of formats would follow it.
    """
    scored: list[Scored] = []
    batch: list[Sample] = []
    listed = list(samples)
    for index, sample in enumerate(listed, start=1):
        batch.append(sample)
        if len(batch) == _BATCH or index == len(listed):
            prepared = [detector.prepare(_pixels(s, control)) for s in batch]
            scored += [
                Scored(s.generated, s.family, finding.logit, finding.probability)
                for s, finding in zip(batch, detector.examine(prepared), strict=True)
            ]
            progress(len(batch))
            batch = []
    return scored


def _pixels(sample: Sample, control: FormatControl) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    pixels = decode(sample.path.read_bytes()).pixels
    if control == "as_is" or (control == "swapped" and not sample.generated):
        return pixels
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90 if control == "alike" else 85)
    return decode(file.getvalue()).pixels


def figures(scored: list[Scored], generated_from: float) -> Figures:
    """Compute the figures of scored pictures of both classes; `generated_from` is the accusing threshold."""
    labels = np.array([int(item.generated) for item in scored])
    probabilities = np.array([item.probability for item in scored])
    scores = np.array([item.logit for item in scored])
    low, high = bootstrap_auroc(scores, labels)
    called = probabilities >= 0.5  # noqa: PLR2004 - the calibrated middle
    accused = probabilities >= generated_from
    return Figures(
        real=int((labels == 0).sum()),
        generated=int(labels.sum()),
        auroc=auroc(scores, labels),
        auroc_low=low,
        auroc_high=high,
        average_precision=average_precision(scores, labels),
        balanced_accuracy=float((called[labels == 1].mean() + (~called[labels == 0]).mean()) / 2),
        tpr_at_fpr_1=tpr_at_fpr(scores, labels, 0.01),
        tpr_at_fpr_5=tpr_at_fpr(scores, labels, 0.05),
        calibration_error=expected_calibration_error(probabilities, labels),
        real_accused=float(accused[labels == 0].mean()),
        generated_found=float(accused[labels == 1].mean()),
    )


def family_figures(scored: list[Scored], generated_from: float) -> dict[str, Figures]:
    """Return the figures by family.

    A generated family is measured against all reals, a real source against all generated pictures.
    """
    reals = [item for item in scored if not item.generated]
    fakes = [item for item in scored if item.generated]
    families = {item.family: item.generated for item in scored}
    return {
        family: figures(
            [item for item in scored if item.family == family] + (reals if generated else fakes),
            generated_from,
        )
        for family, generated in sorted(families.items(), key=lambda pair: (not pair[1], pair[0]))
    }
