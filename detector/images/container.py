"""Container: the parts of a picture's file.

A decoder is given nothing but what the pixels need, so that no other part of a file costs anything, or keeps
its pixels from being read. The size is read from the very bytes that the decoder reads it from.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

ImageFormat = Literal["JPEG", "PNG", "WEBP", "GIF", "AVIF"]
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

#: Parts of a file that are read one by one; an upload of the maximal size in chunks of 8 KiB has 2,560.
MAX_PARTS = 50_000
#: Bytes of EXIF data, or of a colour profile, that are looked at; larger ones are ignored.
MAX_METADATA_BYTES = 4 << 20


class ImageRejectedError(Exception):
    """The bytes cannot be checked as a picture; `reason` is an `ImageReason`, `str()` the detail."""

    def __init__(self, reason: ImageReason, detail: str) -> None:
        super().__init__(detail)
        self.reason: ImageReason = reason


@dataclass(frozen=True)
class Container:
    """A picture's file, taken apart."""

    format: ImageFormat
    #: A file of this format with the first frame and what its pixels need, and nothing else, in pieces.
    pieces: tuple[bytes | memoryview, ...]
    #: Pixels of the stored picture, before it is turned upright.
    width: int
    height: int
    #: Pixels that the decoder works on; more than width x height where it rounds up or needs several frames.
    coded_pixels: int
    #: Most bytes that the decoder needs for the pixels, those of the image that it returns included.
    decoder_bytes: int
    #: Bytes of that image.
    image_bytes: int
    #: EXIF data that orients the picture, as TIFF; empty if there is none.
    exif: bytes = b""
    #: ICC profile; empty if there is none.
    icc_profile: bytes = b""
    #: Whether the file ends before its own end mark, so that pixels may be missing.
    unfinished: bool = False


def bounded() -> Iterator[int]:
    """Yield numbers up to `MAX_PARTS`; then raise `ImageRejectedError`: the file has too many parts."""
    yield from range(MAX_PARTS)
    raise ImageRejectedError("too_much_metadata", f"The file has more than {MAX_PARTS} parts.")


def corrupt_header(name: str) -> ImageRejectedError:
    """Return the error of a file that starts like a format and does not go on like it."""
    return ImageRejectedError("corrupt", f"The file starts like {name}, but its header cannot be read.")


def incomplete() -> ImageRejectedError:
    """Return the error of a file that ends too early."""
    return ImageRejectedError("truncated", "The picture ends before its pixels are complete.")
