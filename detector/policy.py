"""The verdict policy: a probability becomes real, review or generated."""

from typing import Literal

from detector.bundle.thresholds import Thresholds
from detector.images.doubt import Doubt

VerdictName = Literal["real", "review", "generated"]


def decide(probability: float, thresholds: Thresholds, doubt: Doubt | None = None) -> VerdictName:
    """Return the verdict for a calibrated probability of *generated*, in 0..1.

    A picture out of the domain, for which there is a `doubt`, is never called *generated*: it is reviewed.
    """
    if probability >= thresholds.generated_from:
        return "review" if doubt else "generated"
    if probability >= thresholds.review_from:
        return "review"
    return "real"
