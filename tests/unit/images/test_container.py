"""The decoder is given the pixels alone: nothing beside them costs anything, or rejects a picture."""

import io
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from detector.images.container import MAX_METADATA_BYTES, MAX_PARTS
from detector.images.decode import ImageLimits, ImageRejectedError, decode, open_picture, take_apart
from detector.images.jpeg import MAX_JPEG_SCANS

PICTURES = Path(__file__).parents[2] / "data" / "pictures"


def _noise(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def _encoded(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    _noise().save(file, kind, **options)
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

# Each would cost a decoder seconds, minutes or memory. The name says which plain picture it is.
BESIDE_THE_PIXELS: dict[str, Callable[[], bytes]] = {
    "JPEG with EXIF data in many parts": lambda: _jpeg_with(
        _segment(0xE1, b"Exif\0\0" + bytes(60_000)) * 10 + _segment(0xE1, b"Exif\0\0x") * 40_000
    ),
    "JPEG with many comments": lambda: _jpeg_with(_segment(0xFE, b"x") * 40_000),
    "JPEG with a profile of 17 megabytes": lambda: _jpeg_with(
        _segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(65_000)) * 260
    ),
    "PNG with many texts": lambda: _png_with(_chunk(b"tEXt", b"a\0b") * 40_000),
    "PNG with texts that unpack to 40 MB": lambda: _png_with(_TEXTS),
    "PNG with a profile that unpacks to 50 MB": lambda: _png_with(
        _chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(50 << 20), 9))
    ),
    "GIF with many comments": lambda: _gif_with(b"\x21\xfe\x01a\0" * 20_000),
    "GIF with a comment of 8 MB": lambda: _gif_with(b"\x21\xfe" + (b"\xff" + b"a" * 255) * 32_000 + b"\0"),
    "JPEG followed by scans": lambda: _encoded("JPEG") + _jpeg_in_scans(2 * MAX_JPEG_SCANS),
    "JPEG with a depth map": lambda: _jpeg_with(_segment(0xE1, b"http://ns" + bytes(65_000)) * 64),
    "JPEG with an unreadable profile": lambda: _jpeg_with(_segment(0xE2, b"ICC_PROFILE\0\1\1" + b"x" * 500)),
    "PNG with an unreadable profile": lambda: _png_with(
        _chunk(b"iCCP", b"k\0\0" + zlib.compress(b"x" * 500))
    ),
    "PNG with damage in its EXIF data": lambda: _png_with(_chunk(b"eXIf", b"MM\0")),
    "PNG without its end": lambda: _encoded("PNG")[:-12],
    "WEBP with half of an EXIF chunk": lambda: _encoded("WEBP", exif=b"Exif\0\0" + bytes(500))[:-300],
}


@pytest.mark.parametrize("name", BESIDE_THE_PIXELS)
def test_what_stands_beside_the_pixels_changes_nothing(name: str) -> None:
    """The pixels are those of the same file without it."""
    picture = decode(BESIDE_THE_PIXELS[name]())
    plain = decode(_encoded(name.split(maxsplit=1)[0]))
    assert np.array_equal(picture.pixels, plain.pixels)


TOO_MANY_PARTS: dict[str, Callable[[], bytes]] = {
    "a JPEG with many scans": lambda: _jpeg_in_scans(MAX_JPEG_SCANS + 1),
    "a JPEG whose scans follow a marker without a length": lambda: _jpeg_with(
        b"\xff\x01" + _jpeg_in_scans(MAX_JPEG_SCANS + 1)[2:]
    ),
    "a JPEG of comments": lambda: _jpeg_with(_segment(0xFE, b"x") * (MAX_PARTS + 1)),
    "a PNG of texts": lambda: _png_with(_chunk(b"tEXt", b"a\0b") * (MAX_PARTS + 1)),
    "a PNG with empty pixels": lambda: _png_with(_chunk(b"IDAT", b"") * (MAX_PARTS + 1)),
    "a GIF of comments": lambda: _gif_with(b"\x21\xfe\x01a\0" * (MAX_PARTS + 1)),
    "a GIF with a comment in single bytes": lambda: _gif_with(b"\x21\xfe" + b"\1a" * (MAX_PARTS + 1) + b"\0"),
    "a WebP of unknown chunks": lambda: _encoded("WEBP") + b"none\0\0\0\0" * (MAX_PARTS + 1),
}


@pytest.mark.parametrize("name", TOO_MANY_PARTS)
def test_a_file_of_countless_parts_is_rejected(name: str) -> None:
    """To read them one by one, or to carry them over the whole picture, would take seconds."""
    with pytest.raises(ImageRejectedError) as rejected:
        decode(TOO_MANY_PARTS[name]())
    assert rejected.value.reason == "too_much_metadata"
    assert str(rejected.value).endswith(".")


def _profiled(kind: str) -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x010E] = "a description" * 1000
    return _encoded(kind, icc_profile=profile, exif=exif)


ORDINARY: dict[str, Callable[[], bytes]] = {
    "the maximal number of scans": lambda: _jpeg_in_scans(MAX_JPEG_SCANS),
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


@pytest.mark.parametrize(
    "name",
    [
        "png_bytes_after_iend.png",
        "png_phys_wrong_crc.png",
        "png_itxt_wrong_crc.png",
        "png_unknown_chunk.png",
        "png_phys_short.png",
        "avif_exif_unreadable.avif",
        "jpeg_without_end_marker.jpg",
        "jpeg_xmp_orientation_alone.jpg",
    ],
)
def test_a_picture_with_odd_surroundings_is_decoded(name: str) -> None:
    """Each is the same picture of 128 x 96 pixels, and every pixel is there: its first is black."""
    pixels = decode((PICTURES / name).read_bytes()).pixels
    assert pixels.shape == (96, 128, 3)
    assert pixels[0, 0].max() <= 1
    assert np.abs(pixels[-1, -1].astype(int) - (254, 190, 222)).max() <= 1


def test_a_heic_picture_is_named() -> None:
    """Its general brand is that of AVIF too."""
    with pytest.raises(ImageRejectedError, match="HEIC") as rejected:
        decode((PICTURES / "heic_brand_mif1.heic").read_bytes())
    assert rejected.value.reason == "format_not_allowed"


@pytest.mark.parametrize("cut", [1, 40, 400])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_ends_amid_its_pixels_is_truncated(cut: int, progressive: bool) -> None:
    """With the end mark put back the decoder would make up what is missing."""
    data = _encoded("JPEG", progressive=progressive).removesuffix(b"\xff\xd9")
    with pytest.raises(ImageRejectedError) as rejected:
        decode(data[:-cut])
    assert rejected.value.reason == "truncated"


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_without_its_end_mark_is_decoded(progressive: bool) -> None:
    """The pixels are those of the whole file."""
    data = _encoded("JPEG", progressive=progressive)
    assert np.array_equal(decode(data.removesuffix(b"\xff\xd9")).pixels, decode(data).pixels)


def test_a_progressive_jpeg_without_its_last_scans_is_truncated() -> None:
    """Every scan in it is whole, and the details are missing."""
    data = _encoded("JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    with pytest.raises(ImageRejectedError) as rejected:
        decode(data[:last])
    assert rejected.value.reason == "truncated"


def test_every_pixel_of_a_webp_is_required() -> None:
    """Without its last bytes it is truncated."""
    with pytest.raises(ImageRejectedError) as rejected:
        decode(_encoded("WEBP")[:-10])
    assert rejected.value.reason == "truncated"


def _gif_with_frame(width: int, height: int) -> bytes:
    plain = bytearray(_encoded("GIF"))
    image = plain.index(b"\x2c", 13 + 3 * (2 << (plain[10] & 7)))
    plain[image + 5 : image + 9] = struct.pack("<HH", width, height)
    return bytes(plain)


def _webp_with_canvas(width: int, height: int) -> bytes:
    plain = _encoded("WEBP")
    canvas = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBP" + b"VP8X" + struct.pack("<I", 10) + canvas + plain[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _animation_with_frame(width: int, height: int) -> bytes:
    file = io.BytesIO()
    frames = [_noise(seed) for seed in range(2)]
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:])
    data = bytearray(file.getvalue())
    start = data.index(b"\x9d\x01\x2a") + 3
    data[start : start + 4] = struct.pack("<HH", width, height)
    return bytes(data)


LARGER_THAN_THEY_SAY: dict[str, Callable[[], bytes]] = {
    "an AVIF whose bitstream is larger": (PICTURES / "avif_claims_64_pixels.avif").read_bytes,
    "a GIF whose frame is larger than its screen": lambda: _gif_with_frame(8000, 8000),
    "a WebP whose canvas is larger than its frame": lambda: _webp_with_canvas(8000, 8000),
    "a WebP whose frame is larger than its canvas": lambda: _animation_with_frame(8000, 8000),
}


@pytest.mark.parametrize("name", LARGER_THAN_THEY_SAY)
def test_the_size_is_what_the_decoder_works_on(name: str) -> None:
    """Beyond the limit it is rejected before anything is decoded; within, it is decoded or rejected."""
    data = LARGER_THAN_THEY_SAY[name]()
    with pytest.raises(ImageRejectedError) as rejected:
        open_picture(data)
    assert rejected.value.reason == "too_many_pixels"


@pytest.mark.parametrize("name", LARGER_THAN_THEY_SAY)
def test_a_file_that_contradicts_itself_is_decoded_or_rejected(name: str) -> None:
    """Within the limit the decoder decides, and raises nothing else."""
    outcome: object
    try:
        outcome = decode(LARGER_THAN_THEY_SAY[name](), ImageLimits(max_pixels=1 << 40)).pixels.ndim
    except ImageRejectedError as rejected:
        outcome = rejected.reason
    assert outcome in {3, "corrupt", "truncated"}


def test_a_jpeg_that_leaves_its_height_to_a_later_marker_is_rejected() -> None:
    """DNL would say it after the first scan: no decoder here reads it."""
    data = bytearray(_encoded("JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 7] = bytes(2)
    with pytest.raises(ImageRejectedError) as rejected:
        decode(bytes(data))
    assert rejected.value.reason == "corrupt"


def test_a_second_frame_header_is_rejected() -> None:
    """The decoder and Pillow could each believe another one."""
    data = _encoded("JPEG")
    frame = data.index(b"\xff\xc0")
    length = 2 + int.from_bytes(data[frame + 2 : frame + 4])
    with pytest.raises(ImageRejectedError) as rejected:
        decode(data[:frame] + data[frame : frame + length] + data[frame:])
    assert rejected.value.reason == "corrupt"


def test_sixteen_bit_grey_has_its_transparency() -> None:
    """What is transparent is white, as in every other mode."""
    pixels = decode((PICTURES / "png_grey16_transparent.png").read_bytes()).pixels
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[-1, -1].max() < 255


def test_the_colour_profile_is_applied() -> None:
    """Its channels are exchanged; one that is sRGB leaves the pixels as they are."""
    data = (PICTURES / "icc_channels_exchanged.jpg").read_bytes()
    container = take_apart(data)
    assert container is not None
    plain = decode(b"".join(container.pieces)).pixels.astype(int)
    converted = decode(data).pixels
    # Its red is what sRGB calls green, its green blue, and its blue red.
    assert np.abs(plain[..., [2, 0, 1]] - converted).mean() < 4
    assert np.array_equal(decode(_profiled("PNG")).pixels, decode(_encoded("PNG")).pixels)


def test_a_profile_of_other_colours_is_ignored() -> None:
    """A profile for print does not describe the channels of RGB."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    data = _encoded("JPEG", icc_profile=profile)
    assert np.array_equal(decode(data).pixels, decode(_encoded("JPEG")).pixels)


def test_limits_of_metadata_are_above_what_cameras_write() -> None:
    """Colour profiles for print have two megabytes."""
    assert MAX_METADATA_BYTES > 2 << 20
