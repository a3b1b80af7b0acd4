"""The stability check: a verdict that changes when the picture is re-encoded becomes *review*."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from detector.bundle.thresholds import Thresholds
from detector.detector import Detector, Finding
from detector.images.degradations import Pixels, downscaled, jpeg, webp
from detector.policy import VerdictName, decide


@dataclass(frozen=True)
class Reencoding:
    """A re-encoding that pictures commonly go through on their way."""

    #: As text for the report.
    name: str
    apply: Callable[[Pixels], Pixels]


REENCODINGS: tuple[Reencoding, ...] = (
    Reencoding("JPEG 85", lambda pixels: jpeg(pixels, 85)),
    Reencoding("WebP 80", lambda pixels: webp(pixels, 80)),
    Reencoding("JPEG 90 at three quarters of the size", lambda pixels: jpeg(downscaled(pixels, 0.75), 90)),
)


@dataclass(frozen=True)
class StableVerdict:
    """A verdict after the stability check."""

    #: The final verdict.
    verdict: VerdictName
    #: The verdict on the picture itself.
    first: VerdictName
    #: The finding on the picture itself.
    finding: Finding
    #: Probabilities of *generated* for the re-encodings, in their order, 0..1.
    probabilities: tuple[float, ...]

    @property
    def overturned(self) -> bool:
        """Whether a re-encoding changed the verdict."""
        return self.verdict != self.first


def combined_verdict(first: VerdictName, others: Sequence[VerdictName]) -> VerdictName:
    """Return the final verdict, given the verdicts on the picture and on its re-encodings.

    *generated* becomes *review* unless every re-encoding is *generated* too; *real* becomes *review* if one
    of them is *generated*; *review* stays.
    """
    if first == "generated" and any(other != "generated" for other in others):
        return "review"
    if first == "real" and "generated" in others:
        return "review"
    return first


def stable_verdict(
    detector: Detector,
    pixels: Pixels,
    thresholds: Thresholds,
    reencodings: Sequence[Reencoding] = REENCODINGS,
) -> StableVerdict:
    """Score a picture (H, W, 3) and its re-encodings in one batch, and return the final verdict."""
    prepared = [detector.prepare(pixels), *(detector.prepare(each.apply(pixels)) for each in reencodings)]
    finding, *others = detector.examine(prepared)
    first = decide(finding.probability, thresholds, finding.doubt)
    probabilities = tuple(other.probability for other in others)
    verdict = combined_verdict(first, [decide(o.probability, thresholds, o.doubt) for o in others])
    return StableVerdict(verdict, first, finding, probabilities)
