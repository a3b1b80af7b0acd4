"""Format controls: the same pictures with other file histories. An honest score must not follow them."""

from collections.abc import Callable
from dataclasses import dataclass

from detector.corpus.corpus import Sample
from detector.images.degradations import Pixels, downscaled, jpeg


@dataclass(frozen=True)
class Control:
    """One way to hand the pictures on: its `name`, a `detail` on what it does, and what does it.

    `rescaled` says that it changes the scale too, so that its shift is not the format's alone.
    """

    name: str
    meaning: str
    rewrite: Callable[[Pixels, Sample], Pixels]
    rescaled: bool = False


def as_is(pixels: Pixels, _: Sample) -> Pixels:
    """Hand the decoded pixels on untouched."""
    return pixels


def _alike(pixels: Pixels, _: Sample) -> Pixels:
    return jpeg(pixels, 90)


def _swapped(pixels: Pixels, sample: Sample) -> Pixels:
    return jpeg(pixels, 85) if sample.generated else pixels


def _swapped_back(pixels: Pixels, sample: Sample) -> Pixels:
    return pixels if sample.generated else jpeg(pixels, 85)


def _lossless(pixels: Pixels, _: Sample) -> Pixels:
    return downscaled(pixels, 0.75)


AS_IS = Control("as_is", "The files as the corpus has them.", as_is)

CONTROLS: tuple[Control, ...] = (
    Control("alike", "Every picture, real or generated, encoded once more as JPEG of quality 90.", _alike),
    Control(
        "swapped",
        "Only the generated pictures encoded once more, as JPEG of quality 85; the reals stay as decoded. "
        "A detector that takes JPEG for a sign of a photograph loses here.",
        _swapped,
    ),
    Control(
        "swapped_back",
        "Only the reals encoded once more, as JPEG of quality 85; the generated pictures stay as decoded. "
        "A detector that takes JPEG for a sign of a photograph gains here.",
        _swapped_back,
    ),
    Control(
        "lossless",
        "Every picture scaled to three quarters (Lanczos) and handed on without a codec, which breaks the "
        "8 x 8 grid of earlier JPEGs. Its shift includes what the smaller scale itself costs.",
        _lossless,
        rescaled=True,
    ),
)
