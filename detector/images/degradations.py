"""Degradations of pixels in memory: codecs, scaling, blur, noise and cropping."""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Pixels = NDArray[np.uint8]

# Pictures with a shorter side are rejected (`ImageLimits`).
_MIN_SIDE = 32


def jpeg(pixels: Pixels, quality: int) -> Pixels:
    """Encode pixels (H, W, 3) as JPEG with 4:2:0 chroma at `quality` 1..100, and decode them."""
    return _encoded(pixels, "JPEG", quality=quality, subsampling=2)


def webp(pixels: Pixels, quality: int) -> Pixels:
    """Encode pixels (H, W, 3) as lossy WebP at `quality` 1..100, and decode them."""
    return _encoded(pixels, "WEBP", quality=quality)


def downscaled(pixels: Pixels, factor: float) -> Pixels:
    """Scale both sides by `factor` (0..1) with a Lanczos kernel; no side falls below 32 pixels."""
    height, width = (_shorter(side, factor) for side in pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def blurred(pixels: Pixels, sigma: float) -> Pixels:
    """Blur with a Gaussian of `sigma` pixels, which Pillow approximates with box filters."""
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(sigma)))


def noisy(pixels: Pixels, sigma: float, seed: int) -> Pixels:
    """Add Gaussian noise of standard deviation `sigma` (of 255), seeded by `seed`, to each value."""
    noise = np.random.default_rng(seed).normal(0, sigma, pixels.shape)
    return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)


def centre_crop(pixels: Pixels, fraction: float) -> Pixels:
    """Keep the middle `fraction` (0..1) of each side; no side falls below 32 pixels."""
    height, width = (_shorter(side, fraction) for side in pixels.shape[:2])
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def _shorter(side: int, factor: float) -> int:
    return max(round(side * factor), min(side, _MIN_SIDE))


def _encoded(pixels: Pixels, form: str, **options: int) -> Pixels:
    file = BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return np.asarray(Image.open(file).convert("RGB"))
