"""Robustness: how the figures fall as both classes are degraded alike, more and more."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from detector.corpus.corpus import Sample
from detector.images.degradations import Pixels, blurred, centre_crop, downscaled, jpeg, noisy, webp

Extent = Literal["none", "quick", "full"]


@dataclass(frozen=True)
class Degradation:
    """One kind of damage and its strengths, mildest first; `untouched` is the strength that does nothing.

    A codec has no such strength. `apply` takes pixels, the strength and a seed for what is drawn at random.
    """

    name: str
    title: str
    untouched: float | None
    quick: tuple[float, ...]
    full: tuple[float, ...]
    apply: Callable[[Pixels, float, int], Pixels]

    def strengths(self, extent: Extent) -> tuple[float, ...]:
        """Return the strengths to measure, mildest first."""
        return {"none": (), "quick": self.quick, "full": self.full}[extent]

    def at(self, strength: float) -> Callable[[Pixels, Sample], Pixels]:
        """Return what does this damage to a sample's pixels, the same in every run."""

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
