"""The stability check: a verdict that a re-encoding of the picture overturns goes to a person."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from detector.bundle.calibration import Thresholds
from detector.detector import Detector, Finding
from detector.images.degradations import Pixels, downscaled, jpeg, webp
from detector.policy import VerdictName, decide


@dataclass(frozen=True)
class Reencoding:
    """What an honest intermediary may do to a picture: a `name` for people, and what does it."""

    name: str
    apply: Callable[[Pixels], Pixels]


REENCODINGS: tuple[Reencoding, ...] = (
    Reencoding("JPEG 85", lambda pixels: jpeg(pixels, 85)),
    Reencoding("WebP 80", lambda pixels: webp(pixels, 80)),
    Reencoding("JPEG 90 at three quarters of the size", lambda pixels: jpeg(downscaled(pixels, 0.75), 90)),
)


@dataclass(frozen=True)
class StableVerdict:
    """A verdict that has been through the check.

    `verdict` is what holds, `first` the verdict on the picture itself, `finding` what was found on it;
    `probabilities` (0..1) are those of the re-encodings, in their order.
    """

    verdict: VerdictName
    first: VerdictName
    finding: Finding
    probabilities: tuple[float, ...]

    @property
    def overturned(self) -> bool:
        """Whether a re-encoding overturned the first verdict."""
        return self.verdict != self.first


def settled(first: VerdictName, others: Sequence[VerdictName]) -> VerdictName:
    """Return the verdict that holds, given the one on the picture and those on its re-encodings.

    *generated* holds only when every re-encoding is called so too; *real* falls only when one of them is
    called generated; what falls becomes *review*. *review* stays what it is.
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
    """Judge a picture (H, W, 3) and its re-encodings together, and return the verdict that holds."""
    prepared = [detector.prepare(pixels), *(detector.prepare(each.apply(pixels)) for each in reencodings)]
    finding, *others = detector.examine(prepared)
    first = decide(finding.probability, thresholds)
    probabilities = tuple(other.probability for other in others)
    verdict = settled(first, [decide(probability, thresholds) for probability in probabilities])
    return StableVerdict(verdict, first, finding, probabilities)
