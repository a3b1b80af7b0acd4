"""No metadata costs the decoder more than its limits."""

import io
import re
import struct
import zlib
from collections.abc import Callable

import pytest
from PIL import Image, ImageCms

from detector.images.decode import ImageRejectedError, decode
from detector.images.metadata import MAX_JPEG_SCANS, MAX_METADATA_BYTES, MAX_PARTS, MAX_PNG_CHUNKS


def _encoded(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(file, kind, **options)
    return file.getvalue()


def _segment(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _jpeg_with(segments: bytes) -> bytes:
    plain = _encoded("JPEG")
    return plain[:2] + segments + plain[2:]


def _png_with(chunks: bytes) -> bytes:
    plain = _encoded("PNG")
    return plain[:33] + chunks + plain[33:]


def _gif_with(blocks: bytes) -> bytes:
    plain = _encoded("GIF")
    begin = 13 + 3 * (2 << (plain[10] & 7))
    return plain[:begin] + blocks + plain[begin:]


def _jpeg_in_scans(count: int) -> bytes:
    """Return a progressive JPEG whose last scan of 75 bytes is repeated until there are `count` scans."""
    plain = _encoded("JPEG", progressive=True)
    first = [found.start() for found in re.finditer(b"\xff\xda", plain)]
    last = plain[first[-1] : -2]
    return plain[:-2] + last * (count - len(first)) + plain[-2:]


# Texts of 1,000,000 bytes each, compressed to 0.1 % of that.
_TEXT = zlib.compress(b"x" * 1_000_000, 9)
_TEXTS = b"".join(_chunk(b"zTXt", b"%d\0\0" % number + _TEXT) for number in range(40))

HOSTILE: dict[str, Callable[[], bytes]] = {
    "EXIF data in a hundred thousand parts": lambda: _jpeg_with(
        _segment(0xE1, b"Exif\0\0" + bytes(60_000)) * 10 + _segment(0xE1, b"Exif\0\0x") * 100_000
    ),
    "a JPEG of comments": lambda: _jpeg_with(_segment(0xFE, b"x") * (MAX_PARTS + 1)),
    "a JPEG with a profile beyond the limit": lambda: _jpeg_with(
        _segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(65_000)) * (MAX_METADATA_BYTES // 65_000 + 1)
    ),
    "a JPEG with many scans": lambda: _jpeg_in_scans(MAX_JPEG_SCANS + 1),
    "a JPEG whose scans follow a marker without a length": lambda: _jpeg_with(
        b"\xff\x01" + _jpeg_in_scans(MAX_JPEG_SCANS + 1)[2:]
    ),
    "a PNG of texts": lambda: _png_with(_chunk(b"tEXt", b"a\0b") * (MAX_PARTS + 1)),
    "a PNG whose texts fill 40 MB": lambda: _png_with(_TEXTS),
    "a PNG whose profile fills 50 MB": lambda: _png_with(
        _chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(50 << 20), 9))
    ),
    "a PNG with empty pixels": lambda: _png_with(_chunk(b"IDAT", b"") * (MAX_PNG_CHUNKS + 1)),
    "a GIF of comments": lambda: _gif_with(b"\x21\xfe\x01a\0" * (MAX_PARTS + 1)),
    "a GIF with a comment beyond the limit": lambda: _gif_with(
        b"\x21\xfe" + (b"\xff" + b"a" * 255) * (MAX_METADATA_BYTES // 256 + 1) + b"\0"
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_metadata_beyond_the_limits_is_rejected(name: str) -> None:
    """Each is an otherwise valid picture that would cost a decoder seconds, minutes or memory."""
    with pytest.raises(ImageRejectedError) as rejected:
        decode(HOSTILE[name]())
    assert rejected.value.reason == "too_much_metadata"
    assert str(rejected.value).endswith(".")


def _profiled(kind: str) -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x010E] = "a description" * 1000
    return _encoded(kind, icc_profile=profile, exif=exif)


ORDINARY: dict[str, Callable[[], bytes]] = {
    "the maximal number of scans": lambda: _jpeg_in_scans(MAX_JPEG_SCANS),
    "a depth map of four megabytes": lambda: _jpeg_with(_segment(0xE1, b"http://ns" + bytes(65_000)) * 64),
    "data after the picture": lambda: _encoded("JPEG") + _jpeg_in_scans(2 * MAX_JPEG_SCANS),
    "a comment in a GIF": lambda: _gif_with(b"\x21\xfe\x01a\0" * 100),
    "texts in a PNG": lambda: _png_with(_TEXTS[: len(_TEXTS) // 40]),
    **{
        f"a profile and EXIF data in {kind}": lambda kind=kind: _profiled(kind)  # type: ignore[misc]
        for kind in ("JPEG", "PNG", "WEBP", "AVIF")
    },
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_metadata_is_accepted(name: str) -> None:
    """Colour profiles, EXIF data, depth maps and comments of the usual sizes are within the limits."""
    assert decode(ORDINARY[name]()).pixels.shape == (64, 64, 3)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF"])
def test_only_the_first_frame_is_decoded(kind: str) -> None:
    """An animation costs as much as a still picture."""
    frames = [Image.new("RGB", (64, 64), (shade, 0, 0)) for shade in range(0, 250, 5)]
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    assert decode(file.getvalue()).pixels.max() <= 4
