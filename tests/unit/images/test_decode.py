"""Untrusted bytes become pixels or a rejection with a reason."""

import struct
from io import BytesIO
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from detector.images.decode import ImageLimits, ImageReason, ImageRejectedError, decode


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """Encode a picture."""
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(width: int = 64, height: int = 48, mode: str = "RGB") -> Image.Image:
    """Make a picture of noise, which no codec compresses to almost nothing."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


PNG = encoded(noise(), "PNG")
BAD: dict[str, bytes] = {
    "empty": b"",
    "not_an_image": b"This is a text file that somebody named picture.jpg.",
    "format_not_allowed": encoded(noise(), "TIFF"),
    "too_many_pixels": encoded(Image.new("1", (8_000, 8_000)), "PNG"),
    "too_small": encoded(noise(8, 8), "PNG"),
    "too_much_metadata": PNG[:33] + bytes.fromhex("000000006a754e6bdf2b9ad2") * 50_001 + PNG[33:],
    "truncated": encoded(noise(), "JPEG")[:-700],
    "corrupt": PNG[:60] + bytes(40) + PNG[100:],
}


def test_the_bad_inputs_cover_every_reason() -> None:
    """Every reason has an example in this file."""
    assert BAD.keys() == set(get_args(ImageReason))


@pytest.mark.parametrize("reason", BAD)
def test_each_bad_input_is_rejected_with_its_reason(reason: str) -> None:
    """The detail is a sentence."""
    with pytest.raises(ImageRejectedError) as rejected:
        decode(BAD[reason])
    assert rejected.value.reason == reason
    assert str(rejected.value).endswith(".")


# Pillow's decoders raise a ValueError and a RuntimeError for these, not an OSError.
HOSTILE = {
    "pixels that end early": encoded(noise(), "AVIF")[:-100],
    "a missing item": encoded(noise(), "AVIF").replace(b"av01", b"av00"),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_every_error_of_a_decoder_is_a_rejection(data: bytes) -> None:
    """Another exception would count as the worker's failure, and the check would be retried."""
    with pytest.raises(ImageRejectedError) as rejected:
        decode(data)
    assert rejected.value.reason in {"truncated", "corrupt"}
    assert rejected.value.__cause__ is not None
    assert not isinstance(rejected.value.__cause__, OSError)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "AVIF"])
def test_the_allowed_formats_are_decoded(kind: str) -> None:
    """Each allowed format gives its name and pixels of the right shape."""
    picture = decode(encoded(noise(), kind))
    assert (picture.format, picture.width, picture.height) == (kind, 64, 48)
    assert picture.pixels.shape == (48, 64, 3)
    assert picture.pixels.dtype == np.uint8


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1"])
def test_every_colour_mode_becomes_rgb(mode: str) -> None:
    """Grey, palette, bilevel and transparent pictures are decoded to three channels."""
    assert decode(encoded(noise(mode=mode), "PNG")).pixels.shape == (48, 64, 3)


def test_cmyk_becomes_rgb() -> None:
    """A JPEG for print is converted to three channels."""
    assert decode(encoded(noise(mode="CMYK"), "JPEG")).pixels.shape == (48, 64, 3)


def test_sixteen_bit_grey_keeps_its_tones() -> None:
    """A 16-bit ramp becomes an 8-bit ramp instead of being clipped to white."""
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (48, 1))
    pixels = decode(encoded(Image.fromarray(ramp), "PNG")).pixels
    assert pixels[0, 0, 0] == 0
    assert pixels[0, 32, 0] == pytest.approx(130, abs=2)
    assert pixels[0, -1, 0] == 255


def test_transparency_is_flattened_on_white() -> None:
    """A fully transparent picture is white."""
    assert decode(encoded(Image.new("RGBA", (64, 48), (255, 0, 0, 0)), "PNG")).pixels.min() == 255


def test_the_exif_orientation_is_applied() -> None:
    """A picture taken sideways is rotated upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = decode(encoded(noise(), "JPEG", exif=exif))
    assert (picture.width, picture.height) == (48, 64)


# An entry of EXIF data: tag, type (2 text, 3 short, 4 long, 7 bytes), count, value.
SIDEWAYS = (0x0112, 3, 1, 6 << 16)


def with_exif(*entries: tuple[int, int, int, int], count: int | None = None) -> bytes:
    """Return a JPEG whose EXIF data has these entries, and claims `count` of them."""
    body = b"Exif\0\0MM\0\x2a" + struct.pack(">IH", 8, count or len(entries))
    body += b"".join(struct.pack(">HHII", *entry) for entry in entries) + bytes(4)
    plain = encoded(noise(), "JPEG")
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + plain[2:]


@pytest.mark.parametrize(
    "data",
    [
        with_exif((0x0100, 2, 4, 0x41424344), SIDEWAYS),
        with_exif(SIDEWAYS, (0x8769, 4, 1, 60_000), (0x8825, 4, 1, 60_000)),
        with_exif(SIDEWAYS, (0x010F, 2, 40, 60_000)),
        with_exif(SIDEWAYS, count=9),
    ],
    ids=["a width of text", "missing sub-directories", "a missing text", "missing entries"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_orientation_is_applied_when_other_exif_fields_are_damaged(data: bytes) -> None:
    """The picture is rotated like an undamaged one; a sideways picture would score differently."""
    upright = np.rot90(decode(encoded(noise(), "JPEG")).pixels, -1)
    assert np.array_equal(decode(data).pixels, upright)


@pytest.mark.parametrize(
    "data",
    [
        with_exif((0x0112, 7, 1, 6 << 24)),
        with_exif((0x0112, 3, 1, 9 << 16)),
        with_exif(SIDEWAYS).replace(b"MM\0\x2a", b"no\0\x2a"),
    ],
    ids=["bytes", "beyond eight", "no EXIF header"],
)
def test_an_unreadable_orientation_is_ignored(data: bytes) -> None:
    """The pixels are decoded as they are stored."""
    assert np.array_equal(decode(data).pixels, decode(encoded(noise(), "JPEG")).pixels)


def test_unreadable_exif_data_does_not_reject_a_picture() -> None:
    """Pillow raises a SyntaxError when it looks for the orientation in such a WebP."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(noise(), "WEBP", exif=exif).replace(b"MM\0\x2a", b"no\0\x2a")
    assert b"no\0\x2a" in data
    assert np.array_equal(decode(data).pixels, decode(encoded(noise(), "WEBP")).pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_rotated_upright(orientation: int) -> None:
    """The pixels equal those of Pillow's own exif_transpose."""
    data = with_exif((0x0112, 3, 1, orientation << 16))
    assert np.array_equal(decode(data).pixels, ImageOps.exif_transpose(Image.open(BytesIO(data))))


@pytest.mark.parametrize(
    "data",
    [
        *(with_exif((0x0112, 3, 1, orientation << 16)) for orientation in range(1, 9)),
        encoded(noise().convert("RGBA").rotate(30), "PNG"),
        encoded(noise().quantize(16), "PNG", transparency=3),
        encoded(noise().convert("CMYK"), "JPEG"),
        encoded(Image.fromarray(np.arange(64 * 48, dtype=np.uint16).reshape(48, 64) * 21), "PNG"),
    ],
    ids=[*map(str, range(1, 9)), "RGBA", "palette", "CMYK", "16 bits"],
)
def test_a_part_of_a_picture_has_the_pixels_of_the_whole(data: bytes) -> None:
    """In every orientation and mode, also where the part reaches over the edge."""
    picture = decode(data)
    assert picture.shape == picture.pixels.shape
    for part in ((slice(3, 20), slice(7, 41)), (slice(40, 90), slice(-9, None))):
        assert np.array_equal(picture[part], picture.pixels[part])


def test_the_given_limits_are_applied() -> None:
    """A picture at the pixel limit is decoded, and one just over it is rejected."""
    decode(PNG, ImageLimits(max_pixels=64 * 48))
    with pytest.raises(ImageRejectedError, match="limit"):
        decode(PNG, ImageLimits(max_pixels=64 * 48 - 1))


@settings(max_examples=150, deadline=None)
@given(position=st.integers(0, len(PNG) - 1), value=st.integers(0, 255), end=st.integers(1, len(PNG)))
def test_damage_anywhere_gives_pixels_or_a_reason(position: int, value: int, end: int) -> None:
    """A changed byte and a truncation anywhere raise nothing but a rejection."""
    for whole in (PNG, encoded(noise(), "JPEG"), encoded(noise(), "WEBP")):
        damaged = bytearray(whole[:end])
        damaged[min(position, len(damaged) - 1)] = value
        outcome: object
        try:
            outcome = decode(bytes(damaged)).pixels.dtype.name
        except ImageRejectedError as rejected:
            outcome = rejected.reason
        assert outcome in {"uint8", *get_args(ImageReason)}


def test_scans_after_a_jpeg_or_in_its_metadata_do_not_count() -> None:
    """Phones append a film to a picture and embed a preview in it; neither counts as a scan."""
    data = encoded(noise(), "JPEG")
    preview = b"\xff\xe1" + (402).to_bytes(2) + b"\xff\xda" * 200
    assert decode(data[:2] + preview + data[2:] + b"\xff\xda" * 200).width == 64
