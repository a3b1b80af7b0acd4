"""The verdict policy: a probability becomes real, review or generated."""

from typing import Literal

from detector.bundle.thresholds import Thresholds

VerdictName = Literal["real", "review", "generated"]


def decide(probability: float, thresholds: Thresholds) -> VerdictName:
    """Return the verdict for a calibrated probability of *generated*, in 0..1."""
    if probability >= thresholds.generated_from:
        return "generated"
    if probability >= thresholds.review_from:
        return "review"
    return "real"
