"""Limits on what a file holds besides pixels, checked before it is decoded.

Pillow joins the parts of EXIF data one by one, and libjpeg passes over the whole picture for every scan, so
a few megabytes of tiny parts would keep a decoder busy for minutes. Only the lengths of the parts are read
here; a malformed file is left to the decoder, which reports what is wrong.
"""

import re
from collections.abc import Iterator

#: Segments, extensions or chunks without pixels; a camera writes a few dozen.
MAX_PARTS = 1000
#: Bytes in these parts; the largest in practice are phones' depth maps of a few megabytes.
MAX_METADATA_BYTES = 16 << 20
#: Pixel chunks of a PNG; an upload of the maximal size in the usual chunks of 8 KiB has 2,560.
MAX_PNG_CHUNKS = 50_000
#: Scans of a JPEG; a progressive one has about ten.
MAX_JPEG_SCANS = 50

# A JPEG marker that is followed by a length, or ends the picture.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_GIF_FLAGS = 10
_PNG_PIXELS = {b"IDAT", b"fdAT", b"fcTL"}
_GIF_EXTENSION, _GIF_IMAGE = 0x21, 0x2C


class TooMuchMetadataError(Exception):
    """The file has more metadata than any picture needs; `str()` is the detail."""


def bound_metadata(data: bytes) -> None:
    """Check the parts of a JPEG, PNG or GIF file; the decoders of the other formats have limits of their own.

    Raises `TooMuchMetadataError`.
    """
    if data.startswith(b"\xff\xd8"):
        parts = _jpeg_segments(data)
    elif data.startswith(b"\x89PNG"):
        parts = _png_chunks(data)
    elif data.startswith(b"GIF"):
        parts = _gif_extensions(data)
    else:
        return
    total = 0
    for number, length in enumerate(parts, start=1):
        total += length
        if number > MAX_PARTS:
            raise TooMuchMetadataError(f"The file has more than {MAX_PARTS} parts besides its pixels.")
        if total > MAX_METADATA_BYTES:
            raise TooMuchMetadataError(
                f"The file has more than {MAX_METADATA_BYTES} bytes besides its pixels."
            )


def _jpeg_segments(data: bytes) -> Iterator[int]:
    """Yield the length in bytes of each segment of the first picture, except its scans."""
    at, scans = 2, 0
    while found := _MARKER.search(data, at):
        marker, at = data[found.end() - 1], found.end()
        if marker == _END_OF_IMAGE:
            return
        length = int.from_bytes(data[at : at + 2], "big")
        at += length
        if marker == _START_OF_SCAN:
            scans += 1
            if scans > MAX_JPEG_SCANS:
                raise TooMuchMetadataError(f"The picture has more than {MAX_JPEG_SCANS} scans.")
        else:
            yield length


def _png_chunks(data: bytes) -> Iterator[int]:
    """Yield the length in bytes of each chunk without pixels."""
    at = 8
    pixels = 0
    while at + 8 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        at += length + 12
        if kind in _PNG_PIXELS:
            pixels += 1
            if pixels > MAX_PNG_CHUNKS:
                raise TooMuchMetadataError(f"The pixels are in more than {MAX_PNG_CHUNKS} chunks.")
        else:
            yield length


def _gif_extensions(data: bytes) -> Iterator[int]:
    """Yield the length in bytes of each extension before the first frame."""
    flags = data[_GIF_FLAGS] if len(data) > _GIF_FLAGS else 0
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    while at < len(data) and data[at] != _GIF_IMAGE:
        if data[at] != _GIF_EXTENSION:
            # Pillow skips unknown data byte by byte, so each byte counts as a part.
            at += 1
            yield 1
            continue
        begin = at
        at += 2
        while at < len(data) and data[at]:
            at += data[at] + 1
        at += 1
        yield at - begin
