"""Untrusted bytes to RGB pixels, or a rejection with one of a closed set of reasons."""

import mmap
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from detector.images import avif, gif, jpeg, png, webp
from detector.images.colour import ColourConversion, conversion_to_srgb
from detector.images.container import Container, ImageFormat, ImageReason, ImageRejectedError, incomplete

__all__ = [
    "ALLOWED_FORMATS",
    "PICTURE_SUFFIXES",
    "EncodedPicture",
    "ImageFormat",
    "ImageLimits",
    "ImageReason",
    "ImageRejectedError",
    "Picture",
    "decode",
    "open_picture",
    "starts_like_a_picture",
]

ALLOWED_FORMATS: tuple[str, ...] = get_args(ImageFormat)
PICTURE_SUFFIXES = frozenset({".jpg", *(f".{name.lower()}" for name in ALLOWED_FORMATS)})

# Superseded by our own pixel limit, which is checked before any pixel is decoded.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# Pixels that are converted at once.
_STRIP_PIXELS = 1 << 18
# Bytes of an RGB pixel, and of everything that a conversion holds for one pixel of a strip.
_RGB_BYTES, _CONVERSION_BYTES = 3, 32
# Bytes that a decoder needs whatever the size of the picture.
_FIXED_BYTES = 4 << 20

# EXIF orientations whose stored rows are columns, and whose first row or column is stored last.
_SIDEWAYS, _FROM_BELOW, _FROM_THE_RIGHT = {5, 6, 7, 8}, {3, 4, 7, 8}, {2, 3, 6, 7}

# What may stand in the place of pixels that are missing: two that no decoder takes for the same pixels.
_FILLINGS = (bytes(64), b"\x55" * 64)


@dataclass(frozen=True)
class ImageLimits:
    """Limits on the size of a picture."""

    #: Width times height in pixels.
    max_pixels: int = 50_000_000
    #: Shorter side in pixels.
    min_side: int = 32


class Picture:
    """A decoded picture, whose pixels become RGB when they are asked for: upright, in sRGB, on white.

    `picture[top:bottom, left:right]` cuts a part of it, as from an array (H, W, 3). That raises what
    `EncodedPicture.decode` raises.
    """

    def __init__(self, image: Image.Image, container: Container, memory_bytes: int) -> None:
        #: Name of the file format: one of `ALLOWED_FORMATS`.
        self.format: str = container.format
        self._image = image
        self._memory_bytes = memory_bytes
        self._orientation = _orientation(container, image)
        self._mode = image.mode if image.mode in {"L", "CMYK"} else "RGB"
        profile = container.icc_profile or image.info.get("icc_profile") or b""
        self._conversion = conversion_to_srgb(profile, self._mode)

    @property
    def width(self) -> int:
        """Width in pixels, after the EXIF orientation was applied."""
        return self._image.height if self._orientation in _SIDEWAYS else self._image.width

    @property
    def height(self) -> int:
        """Height in pixels, after the EXIF orientation was applied."""
        return self._image.width if self._orientation in _SIDEWAYS else self._image.height

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and 3, as of an array."""
        return self.height, self.width, 3

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """All pixels, (height, width, 3) uint8; not contiguous where the picture was turned."""
        pixels = self[:, :]
        return pixels if pixels.flags.writeable else pixels.copy("K")

    def __getitem__(self, part: tuple[slice, slice]) -> NDArray[np.uint8]:
        """Return a part's pixels, (height, width, 3) uint8, by slices of rows and columns without a step."""
        (top, bottom, _), (left, right, _) = part[0].indices(self.height), part[1].indices(self.width)
        if self._orientation in _FROM_BELOW:
            top, bottom = self.height - bottom, self.height - top
        if self._orientation in _FROM_THE_RIGHT:
            left, right = self.width - right, self.width - left
        if self._orientation in _SIDEWAYS:
            left, top, right, bottom = top, left, bottom, right
        with _decoding(self._memory_bytes):
            pixels = self._rgb(left, top, right, bottom)
        if self._orientation in _SIDEWAYS:
            pixels = pixels.transpose(1, 0, 2)
        return pixels[
            :: -1 if self._orientation in _FROM_BELOW else 1,
            :: -1 if self._orientation in _FROM_THE_RIGHT else 1,
        ]

    def _rgb(self, left: int, top: int, right: int, bottom: int) -> NDArray[np.uint8]:
        """Convert a part of the stored image, strip by strip: besides the two, only a strip is in memory."""
        strips = _strips(right - left, bottom - top)
        if len(strips) == 1:
            return np.asarray(self._flattened(left, top, right, bottom))
        pixels = np.empty((bottom - top, right - left, 3), dtype=np.uint8)
        for first, last in strips:
            pixels[first:last] = np.asarray(self._flattened(left, top + first, right, top + last))
        return pixels

    def _flattened(self, left: int, top: int, right: int, bottom: int) -> Image.Image:
        return _flattened(self._image.crop((left, top, right, bottom)), self._conversion, self._mode)


@dataclass(frozen=True)
class EncodedPicture:
    """A file whose size is known and within the limits, and whose pixels are not decoded yet."""

    _container: Container

    @property
    def pixel_count(self) -> int:
        """Width times height."""
        return self._container.width * self._container.height

    @property
    def memory_bytes(self) -> int:
        """The most bytes that `decode` needs at one time, its result and parts of its pixels included."""
        container = self._container
        return (
            max(container.decoder_bytes, container.image_bytes)
            + _CONVERSION_BYTES * max(_STRIP_PIXELS, container.width)
            + sum(len(piece) for piece in container.pieces)
            + _FIXED_BYTES
        )

    @property
    def rgb_bytes(self) -> int:
        """Bytes of `Picture.pixels`."""
        return _RGB_BYTES * self.pixel_count

    def decode(self) -> Picture:
        """Decode the pixels.

        Raises `ImageRejectedError` when they are damaged or missing, and MemoryError when they may be whole
        and there is no memory for them.
        """
        container, needed = self._container, self.memory_bytes
        with _decoding(needed):
            if container.unfinished:
                _require_all_pixels(container)
            return Picture(_loaded(container, b"".join(container.pieces)), container, needed)


@contextmanager
def _decoding(memory_bytes: int) -> Iterator[None]:
    """Raise `ImageRejectedError` or MemoryError for what Pillow raises: many types, by malformed input."""
    try:
        yield
    except (ImageRejectedError, MemoryError):
        raise
    except Exception as error:
        try:
            # A decoder without memory says so in many ways.
            mmap.mmap(-1, memory_bytes).close()
        except (OSError, ValueError) as full:
            raise MemoryError(f"no {memory_bytes} bytes for a picture: {error}") from full
        raise _decoding_failure(error) from error


def decode(data: bytes, limits: ImageLimits | None = None) -> Picture:
    """Decode the first frame of a JPEG, PNG, WebP, GIF or AVIF file, upright, in sRGB, on a white background.

    Raises `ImageRejectedError` for everything that is not such a picture within `limits`, before any pixel
    is decoded where its size is beyond them; and MemoryError.
    """
    return open_picture(data, limits).decode()


def open_picture(data: bytes, limits: ImageLimits | None = None) -> EncodedPicture:
    """Return a JPEG, PNG, WebP, GIF or AVIF file within `limits`, of which only the size was read.

    Raises `ImageRejectedError`.
    """
    if not data:
        raise ImageRejectedError("empty", "The file is empty.")
    container = take_apart(data)
    if container is None:
        raise _unidentified(data)
    _check_size(container, limits or ImageLimits())
    return EncodedPicture(container)


def take_apart(data: bytes) -> Container | None:
    """Return the parts of a JPEG, PNG, WebP, GIF or AVIF file; None for any other bytes.

    Raises `ImageRejectedError`.
    """
    if data.startswith(jpeg.SIGNATURE):
        return jpeg.take_apart(data)
    if data.startswith(png.SIGNATURE):
        return png.take_apart(data)
    if data.startswith(gif.SIGNATURES):
        return gif.take_apart(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return webp.take_apart(data)
    return avif.take_apart(data) if data[4:8] == b"ftyp" else None


def starts_like_a_picture(data: bytes) -> bool:
    """Return whether the first bytes are those of one of `ALLOWED_FORMATS`."""
    webp_or_avif = (data.startswith(b"RIFF") and data[8:12] == b"WEBP") or data[4:8] == b"ftyp"
    return webp_or_avif or data.startswith((jpeg.SIGNATURE, png.SIGNATURE, *gif.SIGNATURES))


def _check_size(container: Container, limits: ImageLimits) -> None:
    width, height = container.width, container.height
    # Transparency is a picture of its own, and a grid's tiles reach over its edges.
    if width * height > limits.max_pixels or container.coded_pixels > 2 * limits.max_pixels + (1 << 20):
        raise ImageRejectedError(
            "too_many_pixels",
            f"The picture has {width} x {height} pixels; the limit is {limits.max_pixels}.",
        )
    if min(width, height) < limits.min_side:
        raise ImageRejectedError(
            "too_small",
            f"The picture has {width} x {height} pixels; the minimum for a side is {limits.min_side}.",
        )


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


def _decoding_failure(error: Exception) -> ImageRejectedError:
    message = str(error).lower()
    if "truncated" in message or "not enough" in message or isinstance(error, EOFError):
        return incomplete()
    return ImageRejectedError("corrupt", "The picture's data is damaged and cannot be decoded.")


def _loaded(container: Container, data: bytes) -> Image.Image:
    try:
        image = Image.open(BytesIO(data), formats=[container.format])
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ImageRejectedError(
            "corrupt", f"The file starts like {container.format}, but its header cannot be read."
        ) from error
    if image.width * image.height > container.width * container.height:
        raise ImageRejectedError("corrupt", "The file names two sizes for its pixels.")
    image.load()
    # WebP's and AVIF's decoders keep frames of their own.
    for decoder in ("_decoder", "fp"):
        if hasattr(image, decoder):
            setattr(image, decoder, None)
    return image


def _require_all_pixels(container: Container) -> None:
    """Raise `ImageRejectedError` when pixels of a JPEG without its end mark are missing.

    Its decoder makes up pixels that are missing from whatever follows, and ignores what follows the last one.
    """
    *begin, end = container.pieces
    first, second = (_digest(_loaded(container, b"".join([*begin, filling, end]))) for filling in _FILLINGS)
    if first != second:
        raise incomplete()


def _digest(image: Image.Image) -> int:
    checksum = 0
    for top, bottom in _strips(*image.size):
        checksum = zlib.crc32(image.crop((0, top, image.width, bottom)).tobytes(), checksum)
    return checksum


def _orientation(container: Container, image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 where it is missing, unknown or unreadable."""
    try:
        if container.format == "AVIF":
            # Its container turns the picture, whatever its EXIF data says.
            exif = image.getexif()
        else:
            exif = Image.Exif()
            exif.load(container.exif)
        orientation = exif.get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001 - damaged EXIF data does not affect the pixels
        return 1
    return orientation if orientation in range(1, 9) else 1


def _strips(width: int, height: int) -> list[tuple[int, int]]:
    rows = max(1, _STRIP_PIXELS // max(1, width))
    return [(top, min(top + rows, height)) for top in range(0, height, rows)]


def _flattened(strip: Image.Image, conversion: ColourConversion | None, mode: str) -> Image.Image:
    """Return a strip as RGB on a white background."""
    alpha: Image.Image | None = None
    if strip.mode.startswith("I") or strip.mode == "F":
        strip, alpha = _eight_bit(strip)
    elif strip.has_transparency_data:
        strip = strip.convert("RGBA")
        alpha = strip.getchannel("A")
    wanted = mode if conversion else "RGB"
    colours = strip if strip.mode == wanted else strip.convert(wanted)
    if conversion:
        colours = conversion.apply(colours)
    if alpha is None:
        return colours
    return Image.composite(colours, Image.new("RGB", colours.size, "white"), alpha)


def _eight_bit(strip: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Scale 16-bit grey to 8 bits, which Pillow would clip to white; return its transparency too."""
    values = np.asarray(strip)
    grey = np.clip(values / np.float32(257) + np.float32(0.5), 0, 255).astype(np.uint8)
    transparent = strip.info.get("transparency")
    alpha = Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))
    return Image.fromarray(grey), None if transparent is None else alpha
