"""Conditions under which the same pictures are scored again: format controls, and degradations.

A format control changes the files' histories, which an honest score must not follow. A degradation damages
both classes alike, in rising strength.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from detector.corpus.corpus import Sample
from detector.images.degradations import Pixels, blurred, centre_crop, downscaled, jpeg, noisy, webp
from detector.scoring import Rewrite

Extent = Literal["none", "quick", "full"]


@dataclass(frozen=True)
class Control:
    """One format control."""

    name: str
    #: What it does, as text for the report.
    meaning: str
    rewrite: Rewrite
    #: Whether it also changes the scale, so that its shift is not due to the encoding alone.
    rescaled: bool = False


def _alike(pixels: Pixels, _: Sample) -> Pixels:
    return jpeg(pixels, 90)


def _swapped(pixels: Pixels, sample: Sample) -> Pixels:
    return jpeg(pixels, 85) if sample.generated else pixels


def _swapped_back(pixels: Pixels, sample: Sample) -> Pixels:
    return pixels if sample.generated else jpeg(pixels, 85)


def _lossless(pixels: Pixels, _: Sample) -> Pixels:
    return downscaled(pixels, 0.75)


CONTROLS: tuple[Control, ...] = (
    Control("alike", "Every picture, real or generated, re-encoded as JPEG of quality 90.", _alike),
    Control(
        "swapped",
        "Only the generated pictures re-encoded, as JPEG of quality 85; the photographs stay as decoded. "
        "A detector that takes JPEG for a sign of a photograph loses here.",
        _swapped,
    ),
    Control(
        "swapped_back",
        "Only the photographs re-encoded, as JPEG of quality 85; the generated pictures stay as decoded. "
        "A detector that takes JPEG for a sign of a photograph gains here.",
        _swapped_back,
    ),
    Control(
        "lossless",
        "Every picture scaled to three quarters (Lanczos) without a codec, which breaks the 8 x 8 grid of "
        "earlier JPEGs. Its shift includes the cost of the smaller scale.",
        _lossless,
        rescaled=True,
    ),
)


@dataclass(frozen=True)
class Degradation:
    """One degradation and its strengths, mildest first."""

    name: str
    title: str
    #: The strength that changes nothing; None for codecs, which have no such strength.
    identity: float | None
    quick: tuple[float, ...]
    full: tuple[float, ...]
    #: Takes pixels, the strength, and a seed for random degradations.
    apply: Callable[[Pixels, float, int], Pixels]

    def strengths(self, extent: Extent) -> tuple[float, ...]:
        """Return the strengths to measure, mildest first."""
        return {"none": (), "quick": self.quick, "full": self.full}[extent]

    def at(self, strength: float) -> Rewrite:
        """Return the degradation at one strength, deterministic for each sample."""

        def rewrite(pixels: Pixels, sample: Sample) -> Pixels:
            return self.apply(pixels, strength, zlib.crc32(sample.path.name.encode()))

        return rewrite


DEGRADATIONS: tuple[Degradation, ...] = (
    Degradation(
        "jpeg",
        "JPEG quality",
        None,
        (90, 60),
        (95, 90, 80, 70, 60, 50),
        lambda pixels, quality, _: jpeg(pixels, round(quality)),
    ),
    Degradation(
        "webp",
        "WebP quality",
        None,
        (90, 60),
        (95, 90, 80, 70, 60, 50),
        lambda pixels, quality, _: webp(pixels, round(quality)),
    ),
    Degradation(
        "downscale",
        "Downscale factor",
        1.0,
        (0.75, 0.5),
        (0.9, 0.75, 0.6, 0.5, 0.35),
        lambda pixels, factor, _: downscaled(pixels, factor),
    ),
    Degradation(
        "blur",
        "Gaussian blur, sigma in pixels",
        0.0,
        (0.5, 1.5),
        (0.3, 0.5, 1.0, 1.5, 2.0),
        lambda pixels, sigma, _: blurred(pixels, sigma),
    ),
    Degradation("noise", "Gaussian noise, sigma of 255", 0.0, (2.0, 8.0), (1.0, 2.0, 4.0, 8.0, 16.0), noisy),
    Degradation(
        "crop",
        "Centre crop, share of each side",
        1.0,
        (0.75, 0.5),
        (0.9, 0.75, 0.6, 0.5, 0.35),
        lambda pixels, fraction, _: centre_crop(pixels, fraction),
    ),
)
