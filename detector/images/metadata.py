"""What a file carries beside its pixels, bounded before a decoder reads it.

Pillow puts the parts of EXIF data together one by one, and libjpeg walks over the whole picture for every
scan: a few megabytes of tiny parts would keep a decoder busy for minutes. Only the frame of a file is read
here; a file whose frame is broken is left to the decoder, which says what is wrong with it.
"""

import re
from collections.abc import Iterator

#: Segments, blocks or chunks that are no pixels; a camera writes some dozens.
MAX_PARTS = 1000
#: Bytes in them; the largest that are met are depth maps of telephones, of some megabytes.
MAX_METADATA_BYTES = 16 << 20
#: Chunks of pixels in a PNG; the usual 8 KiB a chunk make 2,560 of the largest upload.
MAX_PNG_CHUNKS = 50_000
#: Scans of a JPEG; progressive ones have about ten.
MAX_JPEG_SCANS = 50

# A marker that ends a scan or begins a segment, as libjpeg sees it: the others have no length after them.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_GIF_FLAGS = 10
_PNG_PIXELS = {b"IDAT", b"fdAT", b"fcTL"}
_GIF_EXTENSION, _GIF_IMAGE = 0x21, 0x2C


class TooMuchMetadataError(Exception):
    """The file has more parts, or larger ones, than any picture needs; `str()` is the detail."""


def bound_metadata(data: bytes) -> None:
    """Walk over the frame of a JPEG, PNG or GIF; other formats bound their parts themselves.

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
            raise TooMuchMetadataError(f"The file has more than {MAX_PARTS} parts beside its pixels.")
        if total > MAX_METADATA_BYTES:
            raise TooMuchMetadataError(
                f"The file has more than {MAX_METADATA_BYTES} bytes beside its pixels."
            )


def _jpeg_segments(data: bytes) -> Iterator[int]:
    """Yield the length in bytes of each segment up to the end of the first picture, scans left out."""
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
                raise TooMuchMetadataError(f"The picture is cut into more than {MAX_JPEG_SCANS} scans.")
        else:
            yield length


def _png_chunks(data: bytes) -> Iterator[int]:
    """Yield the length in bytes of each chunk that holds no pixels."""
    at = 8
    pixels = 0
    while at + 8 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        at += length + 12
        if kind in _PNG_PIXELS:
            pixels += 1
            if pixels > MAX_PNG_CHUNKS:
                raise TooMuchMetadataError(f"The pixels are cut into more than {MAX_PNG_CHUNKS} chunks.")
        else:
            yield length


def _gif_extensions(data: bytes) -> Iterator[int]:
    """Yield the length in bytes of each extension before the first frame."""
    flags = data[_GIF_FLAGS] if len(data) > _GIF_FLAGS else 0
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    while at < len(data) and data[at] != _GIF_IMAGE:
        if data[at] != _GIF_EXTENSION:
            # Pillow skips what it does not know a byte at a time.
            at += 1
            yield 1
            continue
        begin = at
        at += 2
        while at < len(data) and data[at]:
            at += data[at] + 1
        at += 1
        yield at - begin
