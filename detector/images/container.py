"""The parts of a picture's file: the pixels for the decoder, and apart from them orientation and colour profile.

A decoder is given nothing but what the pixels need, so that no other part of a file costs anything, or keeps its
pixels from being read. The size is read here too, from the same bytes that the decoder reads it from.
"""

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from detector.images.avif import FramesError, avif_frames, without_exif

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
#: Scans of a JPEG, each of which a decoder carries over the whole picture; a progressive one has about ten.
MAX_JPEG_SCANS = 50

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_PNG_HEADER_BYTES = 13

# A JPEG marker that is followed by a length, or ends the picture.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_EXIF_MARKER, _ICC_MARKER, _ADOBE_MARKER = 0xE1, 0xE2, 0xEE
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_JPEG_TABLES = {0xDB, 0xC4, 0xCC, 0xDD}
_START_OF_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_ICC_HEADER = b"ICC_PROFILE\0"

_GIF_EXTENSION, _GIF_IMAGE, _GIF_CONTROL = 0x21, 0x2C, 0xF9

_WEBP_ALPHA, _WEBP_ANIMATION = 0x10, 0x02
_VP8_START = b"\x9d\x01\x2a"
_VP8L_START = 0x2F


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


def take_apart(data: bytes) -> Container | None:
    """Return the parts of a JPEG, PNG, WebP, GIF or AVIF file; None for any other bytes.

    Raises `ImageRejectedError`.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg(data)
    if data.startswith(_PNG_SIGNATURE):
        return _png(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return _gif(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp(data)
    if data[4:8] == b"ftyp":
        return _avif(data)
    return None


def _png(data: bytes) -> Container:
    header, palette, transparency, exif, icc = b"", b"", b"", b"", b""
    pixels: list[memoryview] = []
    for kind, body, intact in _png_chunks(data):
        if kind == b"IEND":
            break
        if kind == b"IHDR" and not header:
            header = bytes(body)
        elif kind == b"PLTE" and not palette:
            palette = bytes(body[:768])
        elif kind == b"IDAT":
            pixels.append(body)
        elif not intact:
            continue  # damage in an ancillary chunk does not affect the pixels
        elif kind == b"tRNS" and not pixels:
            transparency = bytes(body[:256])
        elif kind == b"iCCP" and not pixels:
            icc = _inflated(bytes(body[:MAX_METADATA_BYTES]).partition(b"\0")[2][1:])
        elif kind == b"eXIf":
            exif = bytes(body[:MAX_METADATA_BYTES])
    if len(header) != _PNG_HEADER_BYTES:
        raise _corrupt_header("PNG")
    if not pixels:
        raise ImageRejectedError("truncated", "The picture ends before its pixels begin.")
    # A transparency that its colour type cannot have is not one.
    grey_or_colour = {0: 2, 2: 6}.get(header[9], 0)
    if header[9] in {0, 2} and len(transparency) < grey_or_colour:
        transparency = b""
    small = [(b"IHDR", header), (b"PLTE", palette), (b"tRNS", transparency)]
    pieces = [piece for kind, body in small if body for piece in _png_chunk(kind, [memoryview(body)])]
    stored = {0: 2 if header[8] == 16 else 1, 3: 1}.get(header[9], 4)
    width, height = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:8], "big")
    return Container(
        format="PNG",
        pieces=(_PNG_SIGNATURE, *pieces, *_png_chunk(b"IDAT", pixels), _PNG_END),
        width=width,
        height=height,
        coded_pixels=width * height,
        decoder_bytes=stored * width * height,
        image_bytes=stored * width * height,
        exif=exif,
        icc_profile=icc,
    )


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, bool]]:
    """Yield the kind and the body of each chunk, and whether its checksum holds; IDAT's is not computed."""
    at = len(_PNG_SIGNATURE)
    for _ in _bounded():
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if not kind:
            return
        body, checksum = memoryview(data)[at + 8 : at + 8 + length], data[at + 8 + length : at + 12 + length]
        computed = b"" if kind == b"IDAT" else zlib.crc32(body, zlib.crc32(kind)).to_bytes(4, "big")
        intact = computed == checksum
        if kind in {b"IHDR", b"PLTE"} and not intact:
            raise ImageRejectedError("corrupt", f"The picture's {kind.decode()} chunk is damaged.")
        yield kind, body, intact
        at += length + 12


def _png_chunk(kind: bytes, bodies: list[memoryview]) -> list[bytes | memoryview]:
    """Return one chunk with these bodies, in pieces."""
    checksum = zlib.crc32(kind)
    for body in bodies:
        checksum = zlib.crc32(body, checksum)
    length = sum(len(body) for body in bodies)
    return [length.to_bytes(4, "big"), kind, *bodies, checksum.to_bytes(4, "big")]


def _inflated(compressed: bytes) -> bytes:
    """Return what a profile unpacks to; nothing if it is damaged or too large."""
    unpacking = zlib.decompressobj()
    try:
        profile = unpacking.decompress(compressed, MAX_METADATA_BYTES)
    except zlib.error:
        return b""
    return profile if unpacking.eof else b""


@dataclass
class _Frame:
    """What a JPEG's start of frame says."""

    marker: int
    width: int
    height: int
    #: (component id, horizontal factor, vertical factor)
    components: list[tuple[int, int, int]]

    @property
    def coded_pixels(self) -> int:
        """Width times height, rounded up to whole units of the largest component."""
        across, down = (8 * max(factors[axis] for factors in self.components) for axis in (1, 2))
        return -(-self.width // across) * across * -(-self.height // down) * down


def _jpeg(data: bytes) -> Container:
    kept: list[bytes | memoryview] = [b"\xff\xd8"]
    frame: _Frame | None = None
    exif: list[bytes] = []
    icc: dict[int, bytes] = {}
    scans: list[bytes] = []
    ended = False
    for marker, body, coded in _jpeg_segments(data):
        if marker == _END_OF_IMAGE:
            ended = True
        elif marker == _START_OF_SCAN:
            scans.append(body)
            if len(scans) > MAX_JPEG_SCANS:
                raise ImageRejectedError(
                    "too_much_metadata", f"The picture has more than {MAX_JPEG_SCANS} scans."
                )
            kept += [_segment(marker, body), coded]
        elif marker in _START_OF_FRAME:
            if frame:
                raise ImageRejectedError("corrupt", "The file holds a second picture inside its first.")
            frame = _start_of_frame(marker, body)
            kept.append(_segment(marker, body))
        elif marker in _JPEG_TABLES or (marker, body[:5]) in {(0xE0, b"JFIF\0"), (_ADOBE_MARKER, b"Adobe")}:
            kept.append(_segment(marker, body))
        elif marker == _EXIF_MARKER and body.startswith(b"Exif\0\0"):
            exif.append(body[6:])
        elif marker == _ICC_MARKER and body.startswith(_ICC_HEADER):
            icc.setdefault(body[len(_ICC_HEADER)] if len(body) > len(_ICC_HEADER) else 0, body[14:])
    if not frame:
        raise _corrupt_header("JPEG")
    if not scans:
        raise ImageRejectedError("truncated", "The picture ends before its pixels begin.")
    kept.append(b"\xff\xd9")
    count = len(frame.components)
    # Several scans are gathered as coefficients of two bytes before the first pixel is computed.
    gathered = 2 * count if len(scans) > 1 or frame.marker in _PROGRESSIVE else 0
    stored = 1 if count == 1 else 4
    profile = b"".join(icc[number] for number in sorted(icc))
    return Container(
        format="JPEG",
        pieces=tuple(kept),
        width=frame.width,
        height=frame.height,
        coded_pixels=frame.coded_pixels,
        decoder_bytes=stored * frame.width * frame.height + gathered * frame.coded_pixels,
        image_bytes=stored * frame.width * frame.height,
        # Only the first part has a header; a later one goes on where it ended.
        exif=b"".join(exif[:64])[:MAX_METADATA_BYTES],
        icc_profile=profile if len(profile) <= MAX_METADATA_BYTES else b"",
        unfinished=not ended,
    )


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes, memoryview]]:
    """Yield marker and body of each segment of the first picture, and after a scan's the coded pixels."""
    at = 2
    for _ in _bounded():
        found = _MARKER.search(data, at)
        if not found:
            return
        marker, begin = data[found.end() - 1], found.end()
        if marker == _END_OF_IMAGE:
            yield marker, b"", memoryview(b"")
            return
        at = begin + max(2, int.from_bytes(data[begin : begin + 2], "big"))
        if at > len(data):
            return  # the segment is incomplete
        body, coded = data[begin + 2 : at], memoryview(b"")
        if marker == _START_OF_SCAN:
            following = _MARKER.search(data, at)
            end = following.start() if following else len(data)
            coded, at = memoryview(data)[at:end], end
        yield marker, body, coded


def _segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body


def _start_of_frame(marker: int, body: bytes) -> _Frame:
    count = body[5] if len(body) > 5 else 0  # noqa: PLR2004 - precision, height, width, count
    parts = [body[at : at + 3] for at in range(6, 6 + 3 * count, 3)]
    components = [(part[0], part[1] >> 4, part[1] & 15) for part in parts if len(part) == 3]  # noqa: PLR2004
    width, height = int.from_bytes(body[3:5], "big"), int.from_bytes(body[1:3], "big")
    whole = count and len(components) == count and all(h and v for _, h, v in components)
    if not whole or not width:
        raise _corrupt_header("JPEG")
    if not height:
        raise ImageRejectedError("corrupt", "The picture does not say how high it is.")
    return _Frame(marker, width, height, components)


def _gif(data: bytes) -> Container:
    if len(data) < 13:  # noqa: PLR2004 - signature, screen and flags
        raise _corrupt_header("GIF")
    begin = 13 + _colour_table(data[10])
    control, image = _first_gif_image(data, begin)
    descriptor = data[image + 1 : image + 10]
    if len(descriptor) < 9:  # noqa: PLR2004 - place, size and flags
        raise ImageRejectedError("truncated", "The picture ends before its pixels begin.")
    left, top, width, height = (int.from_bytes(descriptor[at : at + 2], "little") for at in (0, 2, 4, 6))
    screen_width, screen_height = (int.from_bytes(data[at : at + 2], "little") for at in (6, 8))
    width, height = max(screen_width, left + width), max(screen_height, top + height)
    return Container(
        format="GIF",
        pieces=(data[:begin], control, memoryview(data)[image:]),
        width=width,
        height=height,
        coded_pixels=width * height,
        decoder_bytes=2 * width * height,
        image_bytes=width * height,
    )


def _first_gif_image(data: bytes, at: int) -> tuple[bytes, int]:
    """Return the graphic control extension before the first frame, and where the frame begins."""
    control = b""
    parts = _bounded()
    while True:
        introducer = data[at : at + 1]
        if not introducer or introducer == b";":
            raise ImageRejectedError("truncated", "The picture ends before its pixels begin.")
        if introducer[0] == _GIF_IMAGE:
            return control, at
        if introducer[0] != _GIF_EXTENSION:
            next(parts)
            at += 1
            continue
        begin = at
        at += 2
        while at < len(data) and data[at]:
            next(parts)
            at += data[at] + 1
        at += 1
        if data[begin + 1 : begin + 2] == bytes([_GIF_CONTROL]) and at - begin == 8:  # noqa: PLR2004
            control = data[begin:at]


def _colour_table(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _webp(data: bytes) -> Container:
    view = memoryview(data)
    chunks = list(_riff_chunks(view[12:]))
    extended = bytes(_first(chunks, b"VP8X"))
    if extended and len(extended) < 10:  # noqa: PLR2004 - flags and canvas
        raise _corrupt_header("WEBP")
    animated = bool(extended) and bool(extended[0] & _WEBP_ANIMATION)
    frames = [chunk for chunk in chunks if chunk.kind == b"ANMF"][:1] if animated else []
    inner = [chunk for frame in frames for chunk in _riff_chunks(frame.body[16:])] if animated else chunks
    pixels = next((chunk for chunk in inner if chunk.kind in {b"VP8 ", b"VP8L"}), None)
    if not pixels or not all(chunk.whole for chunk in [*frames, pixels]):
        raise ImageRejectedError("truncated", "The picture ends before its pixels are complete.")
    coded = canvas = _vp8_size(pixels.kind, bytes(pixels.body[:10]))
    kept: list[tuple[bytes, bytes | memoryview]] = [(pixels.kind, pixels.body)]
    if extended:
        canvas = (int.from_bytes(extended[4:7], "little") + 1, int.from_bytes(extended[7:10], "little") + 1)
        flags = bytes([extended[0] & (_WEBP_ALPHA | _WEBP_ANIMATION)]) + bytes(3)
        kept = [(b"VP8X", flags + extended[4:10])]
        if animated:
            kept += [(b"ANIM", bytes(6)), *((frame.kind, frame.body) for frame in frames)]
        else:
            alpha = [(chunk.kind, chunk.body) for chunk in chunks if chunk.kind == b"ALPH" and chunk.whole]
            kept += [*alpha[:1], (pixels.kind, pixels.body)]
    pieces = [piece for kind, body in kept for piece in _riff_chunk(kind, body)]
    length = 4 + sum(len(piece) for piece in pieces)
    area = max(canvas[0] * canvas[1], coded[0] * coded[1])
    exif, icc = _first(chunks, b"EXIF"), _first(chunks, b"ICCP")
    return Container(
        format="WEBP",
        pieces=(b"RIFF", length.to_bytes(4, "little"), b"WEBP", *pieces),
        width=canvas[0],
        height=canvas[1],
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
    for _ in _bounded():
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
    raise _corrupt_header("WEBP")


def _avif(data: bytes) -> Container | None:
    length = int.from_bytes(data[:4], "big")
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, min(length, len(data), 4096), 4))}
    if not brands & {b"avif", b"avis"}:
        if brands & {b"mif1", b"msf1", b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis"}:
            raise ImageRejectedError(
                "format_not_allowed", "HEIC (HEIF) is not one of JPEG, PNG, WEBP, GIF, AVIF."
            )
        return None
    try:
        frames = avif_frames(data)
    except FramesError as error:
        raise ImageRejectedError("corrupt", f"The file starts like AVIF, but {error}.") from error
    area = frames.width * frames.height
    return Container(
        format="AVIF",
        pieces=without_exif(data),
        width=frames.width,
        height=frames.height,
        coded_pixels=frames.decoded_pixels,
        # The image and its bytes, the planes of all frames, and for a grid the planes of the whole.
        decoder_bytes=8 * area
        + 3 * frames.sample_bytes * frames.decoded_pixels
        + (4 * frames.sample_bytes * area if frames.grid else 0),
        image_bytes=4 * area,
    )


def _bounded() -> Iterator[int]:
    """Yield numbers up to `MAX_PARTS`; then the file has too many parts."""
    yield from range(MAX_PARTS)
    raise ImageRejectedError("too_much_metadata", f"The file has more than {MAX_PARTS} parts.")


def _corrupt_header(name: str) -> ImageRejectedError:
    return ImageRejectedError("corrupt", f"The file starts like {name}, but its header cannot be read.")
