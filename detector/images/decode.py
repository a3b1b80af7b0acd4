"""Untrusted bytes to RGB pixels, or a rejection with one of a closed set of reasons."""

import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from detector.images.metadata import MAX_METADATA_BYTES, TooMuchMetadataError, bound_metadata

ImageFormat = Literal["JPEG", "PNG", "WEBP", "GIF", "AVIF"]
ALLOWED_FORMATS: tuple[str, ...] = get_args(ImageFormat)
PICTURE_SUFFIXES = frozenset({".jpg", *(f".{name.lower()}" for name in ALLOWED_FORMATS)})

ImageReason = Literal[
    "empty",
    "not_an_image",
    "format_not_allowed",
    "too_many_pixels",
    "too_small",
    "too_much_metadata",
    "truncated",
    "corrupt",
]

# Superseded by our own pixel limit, which is checked before any pixel is decoded.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Memory for the decompressed text chunks of one PNG; Pillow's own limit is 64 MiB.
PngImagePlugin.MAX_TEXT_MEMORY = MAX_METADATA_BYTES

# EXIF orientation to the transposition that makes the picture upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageRejectedError(Exception):
    """The bytes cannot be checked as a picture; `reason` is an `ImageReason`, `str()` the detail."""

    def __init__(self, reason: ImageReason, detail: str) -> None:
        super().__init__(detail)
        self.reason: ImageReason = reason


@dataclass(frozen=True)
class ImageLimits:
    """Limits on the size of a picture."""

    #: Width times height in pixels.
    max_pixels: int = 50_000_000
    #: Shorter side in pixels.
    min_side: int = 32


@dataclass(frozen=True)
class Picture:
    """A decoded picture."""

    #: Upright RGB, (height, width, 3) uint8.
    pixels: NDArray[np.uint8]
    #: Name of the file format: one of `ALLOWED_FORMATS`.
    format: str

    @property
    def width(self) -> int:
        """Width in pixels, after the EXIF orientation was applied."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """Height in pixels, after the EXIF orientation was applied."""
        return int(self.pixels.shape[0])


def decode(data: bytes, limits: ImageLimits | None = None) -> Picture:
    """Decode the first frame of a JPEG, PNG, WebP, GIF or AVIF file, upright, on a white background.

    The number of pixels and the amount of metadata are checked before anything is decoded. Raises
    `ImageRejectedError` for everything that is not such a picture within `limits`.
    """
    limits = limits or ImageLimits()
    if not data:
        raise ImageRejectedError("empty", "The file is empty.")
    try:
        bound_metadata(data)
    except TooMuchMetadataError as error:
        raise ImageRejectedError("too_much_metadata", str(error)) from error
    image = _open(data)
    _check_size(image, limits)
    try:
        image.load()
        rgb = _flattened(_upright(image))
    except Exception as error:  # Pillow's decoders raise many types for malformed input
        raise _decoding_failure(error) from error
    return Picture(np.asarray(rgb, dtype=np.uint8), _format_name(image))


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(BytesIO(data), formats=ALLOWED_FORMATS)
    except UnidentifiedImageError as error:
        raise _unidentified(data) from error
    except Image.DecompressionBombError as error:
        raise ImageRejectedError("too_many_pixels", "The picture has far too many pixels.") from error
    except Exception as error:  # a malformed header of a format that was recognised
        raise _decoding_failure(error) from error


def _unidentified(data: bytes) -> ImageRejectedError:
    """Distinguish a format that is not allowed, a damaged header, and bytes that are not a picture."""
    Image.init()
    # Each format recognises a prefix of 16 bytes, and some read it without checking its length.
    prefix = data[:16].ljust(16, b"\0")
    for name, (_, accept) in Image.OPEN.items():
        if accept is not None and accept(prefix) is True:
            if name in ALLOWED_FORMATS:
                return ImageRejectedError(
                    "corrupt", f"The file starts like {name}, but its header cannot be read."
                )
            return ImageRejectedError(
                "format_not_allowed", f"{name} is not one of {', '.join(ALLOWED_FORMATS)}."
            )
    return ImageRejectedError("not_an_image", "The bytes are not a picture of any known format.")


def _check_size(image: Image.Image, limits: ImageLimits) -> None:
    width, height = image.size
    if width * height > limits.max_pixels:
        raise ImageRejectedError(
            "too_many_pixels",
            f"The picture has {width} x {height} pixels; the limit is {limits.max_pixels}.",
        )
    if min(width, height) < limits.min_side:
        raise ImageRejectedError(
            "too_small",
            f"The picture has {width} x {height} pixels; the minimum for a side is {limits.min_side}.",
        )


def _decoding_failure(error: Exception) -> ImageRejectedError:
    message = str(error).lower()
    if "text chunks" in message or "decompressed data too large" in message:
        return ImageRejectedError(
            "too_much_metadata", "The picture's texts or colour profile need too much memory."
        )
    if "truncated" in message or "not enough" in message or isinstance(error, EOFError):
        return ImageRejectedError("truncated", "The picture ends before its pixels are complete.")
    return ImageRejectedError("corrupt", "The picture's data is damaged and cannot be decoded.")


def _upright(image: Image.Image) -> Image.Image:
    # Pillow's exif_transpose also rewrites the EXIF data, which fails when another field of it is damaged.
    try:
        turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - damaged EXIF data does not affect the pixels
        return image
    return image if turn is None else image.transpose(turn)


def _flattened(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _eight_bit(image).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits, which Pillow's own conversion would clip to white."""
    values = np.asarray(image, dtype=np.float32) / 257
    return Image.fromarray(np.clip(values + 0.5, 0, 255).astype(np.uint8), mode="L")


def _format_name(image: Image.Image) -> str:
    # Pillow's name for a JPEG with more pictures in it, such as a phone's depth map.
    return "JPEG" if image.format == "MPO" else str(image.format)
