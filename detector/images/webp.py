"""The parts of a WebP file."""

from collections.abc import Iterator
from typing import NamedTuple

from detector.images.container import MAX_METADATA_BYTES, Container, bounded, corrupt_header, incomplete

_ALPHA, _ANIMATION = 0x10, 0x02
_VP8_START = b"\x9d\x01\x2a"
_VP8L_START = 0x2F


def take_apart(data: bytes) -> Container:
    """Return the parts of a WebP file, of its first frame. Raises `ImageRejectedError`."""
    view = memoryview(data)
    chunks = list(_riff_chunks(view[12:]))
    extended = bytes(_first(chunks, b"VP8X"))
    if extended and len(extended) < 10:  # noqa: PLR2004 - flags and canvas
        raise corrupt_header("WEBP")
    animated = bool(extended) and bool(extended[0] & _ANIMATION)
    frames = [chunk for chunk in chunks if chunk.kind == b"ANMF"][:1] if animated else []
    inner = [chunk for frame in frames for chunk in _riff_chunks(frame.body[16:])] if animated else chunks
    pixels = next((chunk for chunk in inner if chunk.kind in {b"VP8 ", b"VP8L"}), None)
    if not pixels or not all(chunk.whole for chunk in [*frames, pixels]):
        raise incomplete()
    coded = canvas = _vp8_size(pixels.kind, bytes(pixels.body[:10]))
    kept: list[tuple[bytes, bytes | memoryview]] = [(pixels.kind, pixels.body)]
    if extended:
        canvas = (int.from_bytes(extended[4:7], "little") + 1, int.from_bytes(extended[7:10], "little") + 1)
        flags = bytes([extended[0] & (_ALPHA | _ANIMATION)]) + bytes(3)
        kept = [(b"VP8X", flags + extended[4:10])]
        if animated:
            kept += [(b"ANIM", bytes(6)), *((frame.kind, frame.body) for frame in frames)]
        else:
            alpha = [(chunk.kind, chunk.body) for chunk in chunks if chunk.kind == b"ALPH" and chunk.whole]
            kept += [*alpha[:1], (pixels.kind, pixels.body)]
    pieces = [piece for kind, body in kept for piece in _riff_chunk(kind, body)]
    length = 4 + sum(len(piece) for piece in pieces)
    width, height = max(canvas[0], coded[0]), max(canvas[1], coded[1])
    area = width * height
    exif, icc = _first(chunks, b"EXIF"), _first(chunks, b"ICCP")
    return Container(
        format="WEBP",
        pieces=(b"RIFF", length.to_bytes(4, "little"), b"WEBP", *pieces),
        width=width,
        height=height,
        coded_pixels=area,
        # Two canvases, the frame's bytes and the image; without loss, colours and alpha before them.
        decoder_bytes=(22 if pixels.kind == b"VP8L" else 18) * area,
        image_bytes=4 * area,
        exif=bytes(exif[:MAX_METADATA_BYTES]).removeprefix(b"Exif\0\0"),
        icc_profile=bytes(icc) if len(icc) <= MAX_METADATA_BYTES else b"",
    )


class _RiffChunk(NamedTuple):
    kind: bytes
    body: memoryview
    #: Whether all of it is there.
    whole: bool


def _riff_chunks(view: memoryview) -> Iterator[_RiffChunk]:
    at = 0
    for _ in bounded():
        kind, length = bytes(view[at : at + 4]), int.from_bytes(view[at + 4 : at + 8], "little")
        if len(kind) < 4:  # noqa: PLR2004 - a kind has four letters
            return
        body = view[at + 8 : at + 8 + length]
        yield _RiffChunk(kind, body, len(body) == length)
        at += 8 + length + length % 2


def _riff_chunk(kind: bytes, body: bytes | memoryview) -> list[bytes | memoryview]:
    return [kind, len(body).to_bytes(4, "little"), body, b"\0" * (len(body) % 2)]


def _first(chunks: list[_RiffChunk], kind: bytes) -> memoryview:
    return next((chunk.body for chunk in chunks if chunk.kind == kind and chunk.whole), memoryview(b""))


def _vp8_size(kind: bytes, body: bytes) -> tuple[int, int]:
    if kind == b"VP8 " and body[3:6] == _VP8_START and len(body) == 10:  # noqa: PLR2004 - the frame's header
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    if kind == b"VP8L" and body[:1] == bytes([_VP8L_START]) and len(body) >= 5:  # noqa: PLR2004 - its header
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    raise corrupt_header("WEBP")
