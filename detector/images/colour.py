"""A picture's own colours to sRGB, by its ICC profile."""

from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

# The colour space that a profile is of, by the mode of the pixels that it can describe.
_SPACES = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK"}
# Levels of each channel that are looked at to tell a profile from sRGB, and how far they may be off.
_PROBES = (0, 64, 128, 192, 255)
_SAME_WITHIN = 2


class ColourConversion:
    """Converts pixels of one mode to sRGB."""

    def __init__(self, transform: ImageCms.ImageCmsTransform) -> None:
        self._transform = transform

    def apply(self, image: Image.Image) -> Image.Image:
        """Return an image of the profile's mode as sRGB."""
        converted = Image.new("RGB", image.size)
        self._transform.apply(image, converted)
        return converted


def conversion_to_srgb(icc_profile: bytes, mode: str) -> ColourConversion | None:
    """Return the conversion of pixels in `mode` (L, RGB or CMYK) by their profile.

    None where there is nothing to convert: no profile, one that is damaged or of other colours, or one that
    is sRGB within rounding, by which pixels would change and colours would not.
    """
    if not icc_profile or mode not in _SPACES:
        return None
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(icc_profile))
        if profile.profile.xcolor_space != _SPACES[mode]:
            return None
        transform = ImageCms.buildTransform(
            profile,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        )
        conversion = ColourConversion(transform)
        probe = _probe(mode)
        difference = np.asarray(conversion.apply(probe), dtype=int) - np.asarray(
            probe.convert("RGB"), dtype=int
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    if mode != "CMYK" and np.abs(difference).max() <= _SAME_WITHIN:
        return None
    return conversion


def _probe(mode: str) -> Image.Image:
    levels = np.array(_PROBES, dtype=np.uint8)
    channels = {"L": 1, "RGB": 3, "CMYK": 4}[mode]
    grid = np.stack(np.meshgrid(*[levels] * channels, indexing="ij"), axis=-1).reshape(1, -1, channels)
    return Image.fromarray(grid[..., 0] if channels == 1 else grid, mode=mode)
