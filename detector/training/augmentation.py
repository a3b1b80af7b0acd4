"""Random augmentations, drawn for each picture whatever its label."""

import math
from dataclasses import dataclass
from io import BytesIO
from typing import Protocol

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from detector.images.views import mirrored


class Augmentation(Protocol):
    """Turns a picture into a training crop. It is not given the label."""

    def __call__(self, pixels: NDArray[np.uint8], size: int, rng: Generator) -> NDArray[np.uint8]:
        """Return a crop (size, size, 3) of `pixels` (H, W, 3)."""


@dataclass(frozen=True)
class CodecChain:
    """Downscaling, blur, crops, lossy re-encoding and a flip, as uploads go through them.

    The fields are probabilities in 0..1, except for `smallest_scale` (0..1), the largest deviations of the
    blur in pixels and of the noise in grey levels, and `quality`, the range of JPEG and WebP qualities. A
    screenshot is a resized picture in a lossless file.
    """

    downscale: float = 0.6
    smallest_scale: float = 0.4
    blur: float = 0.1
    largest_blur: float = 1.2
    noise: float = 0.0
    largest_noise: float = 6.0
    encode: float = 0.9
    encode_again: float = 0.25
    webp: float = 0.15
    screenshot: float = 0.0
    quality: tuple[int, int] = (65, 98)

    def __call__(self, pixels: NDArray[np.uint8], size: int, rng: Generator) -> NDArray[np.uint8]:
        """Return a crop (size, size, 3) of `pixels` (H, W, 3)."""
        image = Image.fromarray(pixels)
        if rng.random() < self.downscale:
            image = _downscaled(image, max(self.smallest_scale, size / min(image.size)), rng)
        if rng.random() < self.blur:
            image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, self.largest_blur)))
        if self.noise and rng.random() < self.noise:
            image = _noisy(image, rng.uniform(1, self.largest_noise), rng)
        # The margin puts the codec's 8 x 8 grid at a random offset in the final crop.
        image = _crop(image, size + 16, rng)
        if rng.random() < self.encode:
            image = self._encoded(image, rng)
            if rng.random() < self.encode_again:
                image = self._encoded(_crop(image, size + 8, rng), rng)
        if self.screenshot and rng.random() < self.screenshot:
            image = _resized(image, rng.uniform(0.75, 1.5), size, rng)
        return _flipped(np.asarray(_crop(image, size, rng)), rng)

    def _encoded(self, image: Image.Image, rng: Generator) -> Image.Image:
        quality = int(rng.integers(self.quality[0], self.quality[1] + 1))
        file = BytesIO()
        if rng.random() < self.webp:
            image.save(file, "WEBP", quality=quality, method=2)
        else:
            image.save(file, "JPEG", quality=quality, subsampling=int(rng.choice([0, 2, 2])))
        return Image.open(file).convert("RGB")


@dataclass(frozen=True)
class SquashAndFlip:
    """The published augmentation: the whole picture resized to `size` x `size`, and a flip.

    Bicubic and antialiased, rounded to whole grey levels; the published resize keeps the fractions.
    """

    def __call__(self, pixels: NDArray[np.uint8], size: int, rng: Generator) -> NDArray[np.uint8]:
        """Return (size, size, 3) of `pixels` (H, W, 3)."""
        squashed = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)
        return _flipped(np.asarray(squashed), rng)


#: Chains by name: what the first bundles were trained with, and what uploads go through in public.
CHAINS: dict[str, CodecChain] = {
    "mild": CodecChain(),
    "uploads": CodecChain(
        downscale=0.7,
        smallest_scale=0.25,
        blur=0.25,
        largest_blur=2.0,
        noise=0.15,
        encode=0.92,
        encode_again=0.35,
        webp=0.25,
        screenshot=0.1,
        quality=(40, 98),
    ),
}


def _noisy(image: Image.Image, sigma: float, rng: Generator) -> Image.Image:
    pixels = np.asarray(image)
    noisy = pixels + sigma * rng.standard_normal(pixels.shape, dtype=np.float32)
    return Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))


def _resized(image: Image.Image, scale: float, smallest: int, rng: Generator) -> Image.Image:
    scale = max(scale, smallest / min(image.size))
    size = (math.ceil(image.width * scale), math.ceil(image.height * scale))
    return image.resize(size, Image.Resampling.BILINEAR if rng.random() < 0.5 else Image.Resampling.BICUBIC)  # noqa: PLR2004


def _downscaled(image: Image.Image, smallest: float, rng: Generator) -> Image.Image:
    if smallest >= 1:
        return image
    scale = rng.uniform(smallest, 1)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    kernel = Image.Resampling.BICUBIC if rng.random() < 0.5 else Image.Resampling.LANCZOS  # noqa: PLR2004
    return image.resize(size, kernel)


def _crop(image: Image.Image, size: int, rng: Generator) -> Image.Image:
    """Cut a random square; a picture smaller than that is mirrored at its edges."""
    if min(image.size) < size:
        image = Image.fromarray(mirrored(np.asarray(image), size))
    left = int(rng.integers(0, image.width - size + 1))
    top = int(rng.integers(0, image.height - size + 1))
    return image.crop((left, top, left + size, top + size))


def _flipped(pixels: NDArray[np.uint8], rng: Generator) -> NDArray[np.uint8]:
    return np.ascontiguousarray(pixels[:, ::-1] if rng.random() < 0.5 else pixels)  # noqa: PLR2004
