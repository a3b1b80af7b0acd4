"""The parts of a PNG file."""

import zlib
from collections.abc import Iterator

from detector.images.container import (
    MAX_METADATA_BYTES,
    Container,
    ImageRejectedError,
    bounded,
    corrupt_header,
    incomplete,
)

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_END = b"\0\0\0\0IEND\xaeB`\x82"
_HEADER_BYTES = 13
_DEEP = 16  # bits of a sample
# Bytes of a decoded grey pixel or index into the palette, with up to 8 and with 16 bits.
_GREY_BYTES = (1, 2)
_TRANSPARENT_BYTES = {0: 2, 2: 6}
_BEFORE_PIXELS = {b"tRNS", b"iCCP"}


def take_apart(data: bytes) -> Container:
    """Return the parts of a PNG file; of an animation its default picture. Raises `ImageRejectedError`."""
    # The first of each kind counts. Damage in an ancillary chunk does not affect the pixels: it is left out.
    first: dict[bytes, memoryview] = {}
    pixels: list[memoryview] = []
    for kind, body, intact in _chunks(data):
        if kind == b"IEND":
            break
        if kind == b"IDAT":
            pixels.append(body)
        elif intact and not (pixels and kind in _BEFORE_PIXELS):
            first.setdefault(kind, body)
        elif not intact and kind in {b"IHDR", b"PLTE"}:
            raise ImageRejectedError("corrupt", f"The picture's {kind.decode()} chunk is damaged.")
    header = bytes(first.get(b"IHDR", b""))
    if len(header) != _HEADER_BYTES:
        raise corrupt_header("PNG")
    if not pixels:
        raise incomplete()
    width, height, depth, colour_type = *_integers(header), header[8], header[9]
    # Colours that a grey or true-colour picture shows as transparent have a value for each channel.
    if len(first.get(b"tRNS", b"")) < _TRANSPARENT_BYTES.get(colour_type, 0):
        first.pop(b"tRNS", None)
    pieces = [
        piece
        for kind in (b"IHDR", b"PLTE", b"tRNS")
        if kind in first
        for piece in _chunk(kind, [first[kind]])
    ]
    image_bytes = width * height * (_GREY_BYTES[depth == _DEEP] if colour_type in {0, 3} else 4)
    return Container(
        format="PNG",
        pieces=(SIGNATURE, *pieces, *_chunk(b"IDAT", pixels), _END),
        width=width,
        height=height,
        coded_pixels=width * height,
        decoder_bytes=image_bytes,
        image_bytes=image_bytes,
        exif=bytes(first.get(b"eXIf", b"")[:MAX_METADATA_BYTES]),
        icc_profile=_profile(bytes(first.get(b"iCCP", b"")[:MAX_METADATA_BYTES])),
    )


def _integers(header: bytes) -> tuple[int, int]:
    return int.from_bytes(header[:4], "big"), int.from_bytes(header[4:8], "big")


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, bool]]:
    """Yield the kind and the body of each chunk, and whether its checksum holds; IDAT's is not computed."""
    at = len(SIGNATURE)
    for _ in bounded():
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if not kind:
            return
        body, checksum = memoryview(data)[at + 8 : at + 8 + length], data[at + 8 + length : at + 12 + length]
        computed = b"" if kind == b"IDAT" else zlib.crc32(body, zlib.crc32(kind)).to_bytes(4, "big")
        yield kind, body, computed == checksum
        at += length + 12


def _chunk(kind: bytes, bodies: list[memoryview]) -> list[bytes | memoryview]:
    """Return one chunk with these bodies, in pieces."""
    checksum = zlib.crc32(kind)
    for body in bodies:
        checksum = zlib.crc32(body, checksum)
    length = sum(len(body) for body in bodies)
    return [length.to_bytes(4, "big"), kind, *bodies, checksum.to_bytes(4, "big")]


def _profile(chunk: bytes) -> bytes:
    """Return the profile in an iCCP chunk; nothing if it is damaged or too large."""
    unpacking = zlib.decompressobj()
    try:
        profile = unpacking.decompress(chunk.partition(b"\0")[2][1:], MAX_METADATA_BYTES)
    except zlib.error:
        return b""
    return profile if unpacking.eof else b""
