"""One random history for both classes: downscale, crop, flip, blur and lossy re-encoding."""

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from detector.images.views import mirrored


@dataclass(frozen=True)
class CodecChain:
    """What an upload may have lived through, drawn anew for each picture whatever its label.

    Probabilities are in 0..1; `quality` is the range of JPEG and WebP qualities.
    """

    downscale: float = 0.6
    smallest_scale: float = 0.4
    blur: float = 0.1
    encode: float = 0.9
    encode_again: float = 0.25
    webp: float = 0.15
    quality: tuple[int, int] = (65, 98)

    def __call__(self, pixels: NDArray[np.uint8], size: int, rng: Generator) -> NDArray[np.uint8]:
        """Return a crop (size, size, 3) of `pixels` (H, W, 3) after one random history."""
        image = Image.fromarray(pixels)
        if rng.random() < self.downscale:
            image = _downscaled(image, max(self.smallest_scale, size / min(image.size)), rng)
        if rng.random() < self.blur:
            image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))
        # A margin lets the codec's 8x8 grid fall anywhere in the final crop.
        image = _crop(image, size + 16, rng)
        if rng.random() < self.encode:
            image = self._encoded(image, rng)
            if rng.random() < self.encode_again:
                image = self._encoded(_crop(image, size + 8, rng), rng)
        crop = np.asarray(_crop(image, size, rng))
        return np.ascontiguousarray(crop[:, ::-1] if rng.random() < 0.5 else crop)  # noqa: PLR2004 - a coin

    def _encoded(self, image: Image.Image, rng: Generator) -> Image.Image:
        quality = int(rng.integers(self.quality[0], self.quality[1] + 1))
        file = BytesIO()
        if rng.random() < self.webp:
            image.save(file, "WEBP", quality=quality, method=2)
        else:
            image.save(file, "JPEG", quality=quality, subsampling=int(rng.choice([0, 2, 2])))
        return Image.open(file).convert("RGB")


def _downscaled(image: Image.Image, smallest: float, rng: Generator) -> Image.Image:
    if smallest >= 1:
        return image
    scale = rng.uniform(smallest, 1)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    kernel = Image.Resampling.BICUBIC if rng.random() < 0.5 else Image.Resampling.LANCZOS  # noqa: PLR2004
    return image.resize(size, kernel)


def _crop(image: Image.Image, size: int, rng: Generator) -> Image.Image:
    """Cut a random square; a picture smaller than it is mirrored at its edges."""
    if min(image.size) < size:
        image = Image.fromarray(mirrored(np.asarray(image), size))
    left = int(rng.integers(0, image.width - size + 1))
    top = int(rng.integers(0, image.height - size + 1))
    return image.crop((left, top, left + size, top + size))
