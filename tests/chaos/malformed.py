"""Damaged, hostile and unusual pictures, made from real ones; the same for the same seed."""

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache

from PIL import Image, ImageOps

from worker.demo.samples import load_samples

Kind = Callable[["Bases", random.Random], bytes]


class Bases:
    """Small real photographs in every format of the allow-list."""

    def __init__(self, side: int = 64) -> None:
        self.pictures = [_opened(sample.read(), side) for sample in load_samples()]
        self.encoded = [
            data
            for picture in self.pictures
            for data in (
                _encoded(picture, "JPEG", quality=80),
                _encoded(picture, "JPEG", quality=80, progressive=True, exif=_exif()),
                _encoded(picture, "PNG"),
                _encoded(picture, "WEBP", quality=80),
                _encoded(picture, "WEBP", lossless=True),
                _encoded(picture, "GIF"),
                _encoded(picture, "AVIF", quality=60, speed=10),
            )
        ]
        frames = self.pictures[:4]
        self.animated = [
            _encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=40)
            for kind in ("GIF", "WEBP", "PNG", "AVIF")
        ]


def malformed_pictures(count: int, *, seed: int = 11) -> Iterator[tuple[str, bytes]]:
    """Yield `count` pictures with the names of their kinds, of each kind equally many."""
    bases, chance = Bases(), random.Random(seed)
    kinds: Sequence[tuple[str, Kind]] = list(KINDS.items())
    for number in range(count):
        name, make = kinds[number % len(kinds)]
        yield name, make(bases, chance)


def _truncated(bases: Bases, chance: random.Random) -> bytes:
    data = chance.choice(bases.encoded)
    return data[: chance.randrange(len(data))]


def _flipped(bases: Bases, chance: random.Random) -> bytes:
    data = bytearray(chance.choice(bases.encoded))
    for _ in range(chance.choice((1, 2, 8, 64))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def _flipped_header(bases: Bases, chance: random.Random) -> bytes:
    data = bytearray(chance.choice(bases.encoded))
    for _ in range(chance.randint(1, 6)):
        data[chance.randrange(min(64, len(data)))] = chance.randrange(256)
    return bytes(data)


def _overwritten(bases: Bases, chance: random.Random) -> bytes:
    data = bytearray(chance.choice(bases.encoded))
    at = chance.randrange(len(data))
    span = data[at : at + chance.randint(1, 400)]
    data[at : at + len(span)] = chance.choice(
        (bytes(len(span)), b"\xff" * len(span), chance.randbytes(len(span)))
    )
    return bytes(data)


def _spliced(bases: Bases, chance: random.Random) -> bytes:
    first, second = chance.choice(bases.encoded), chance.choice(bases.encoded)
    return first[: chance.randrange(len(first))] + second[chance.randrange(len(second)) :]


def _png_behind_its_checksums(bases: Bases, chance: random.Random) -> bytes:
    """Damage the content of a PNG's chunks and correct their checksums, so that the decoder reads it."""
    data = _encoded(chance.choice(bases.pictures), "PNG")
    found, at = [data[:8]], 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4])
        kind, content = data[at + 4 : at + 8], bytearray(data[at + 8 : at + 8 + length])
        if content and chance.random() < 0.5:
            content[chance.randrange(len(content))] = chance.randrange(256)
        found.append(_chunk(kind, bytes(content)))
        at += 12 + length
    return b"".join(found)


def _bomb(bases: Bases, chance: random.Random) -> bytes:
    """Return a small file that claims to be, or decompresses to, a far larger one."""
    side = chance.randrange(20_000, 60_000)
    match chance.randrange(6):
        case 0:
            header = struct.pack(">IIBBBBB", side, side, 8, chance.choice((0, 2, 6)), 0, 0, 0)
            pixels = zlib.compress(bytes(100_000))
            return _PNG + _chunk(b"IHDR", header) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")
        case 1:
            return b"GIF89a" + struct.pack("<HH", side, side) + b"\x80\0\0" + bytes(6) + b"\x2c" + bytes(40)
        case 2:
            data = _encoded(chance.choice(bases.pictures), "JPEG")
            at = data.index(b"\xff\xc0") + 5
            return data[:at] + struct.pack(">HH", side, side) + data[at + 4 :]
        case 3:
            text = b"bomb\0\0" + _compressed_zeros(80)
            return _with_chunk(_encoded(chance.choice(bases.pictures), "PNG"), _chunk(b"zTXt", text))
        case 4:
            profile = b"bomb\0\0" + _compressed_zeros(80)
            return _with_chunk(_encoded(chance.choice(bases.pictures), "PNG"), _chunk(b"iCCP", profile))
        case _:
            data = _encoded(chance.choice(bases.pictures), "JPEG", progressive=True)
            return data[:-2] + data[data.rfind(b"\xff\xda") : -2] * 2000 + data[-2:]


def _polyglot(bases: Bases, chance: random.Random) -> bytes:
    data = chance.choice(bases.encoded)
    other = chance.choice(
        (
            b"<script>alert(1)</script>",
            b"PK\x03\x04" + chance.randbytes(200),
            b"%PDF-1.7\n" + chance.randbytes(200),
            b"<?php system($_GET['c']); ?>",
            b"MZ" + chance.randbytes(200),
            chance.choice(bases.encoded),
        )
    )
    return chance.choice((data + other, other + data, data[:16] + other + data[16:]))


def _other_format(bases: Bases, chance: random.Random) -> bytes:
    """Return a file of a format that is not on the allow-list."""
    kind = chance.choice(("TIFF", "BMP", "ICO", "PPM", "TGA", "PCX", "JPEG2000", "text", "svg", "random"))
    match kind:
        case "text":
            return b"This is not a picture. " * chance.randrange(1, 50)
        case "svg":
            return b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"
        case "random":
            return chance.randbytes(chance.randrange(2000))
    return _encoded(chance.choice(bases.pictures), kind)


def _sixteen_bits(bases: Bases, chance: random.Random) -> bytes:
    picture = chance.choice(bases.pictures)
    if chance.random() < 0.5:
        return _encoded(picture.convert("I;16"), "PNG")
    rows = b"".join(b"\0" + chance.randbytes(picture.width * 6) for _ in range(picture.height))
    header = struct.pack(">IIBBBBB", *picture.size, 16, 2, 0, 0, 0)
    return b"".join(
        [_PNG, _chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(rows, 1)), _chunk(b"IEND", b"")]
    )


def _odd_colours(bases: Bases, chance: random.Random) -> bytes:
    picture = chance.choice(bases.pictures)
    mode, kind = chance.choice(
        (("CMYK", "JPEG"), ("L", "JPEG"), ("1", "PNG"), ("LA", "PNG"), ("RGBA", "WEBP"), ("P", "PNG"))
    )
    if mode == "P":
        return _encoded(picture.quantize(16), kind, transparency=chance.randrange(16))
    return _encoded(picture.convert(mode), kind)


def _odd_metadata(bases: Bases, chance: random.Random) -> bytes:
    exif = bytearray(_exif(chance.randrange(12)).tobytes())
    for _ in range(chance.randrange(4)):
        exif[chance.randrange(6, len(exif))] = chance.randrange(256)
    profile = chance.randbytes(chance.randrange(1, 3000))
    return _encoded(chance.choice(bases.pictures), "JPEG", exif=bytes(exif), icc_profile=profile)


def _animated(bases: Bases, chance: random.Random) -> bytes:
    data = chance.choice(bases.animated)
    return data if chance.random() < 0.5 else data[: chance.randrange(len(data))]


def _odd_size(_: Bases, chance: random.Random) -> bytes:
    wide = {"JPEG": 65_500, "WEBP": 16_383, "AVIF": 16_384}
    kind = chance.choice(("JPEG", "PNG", "WEBP", "GIF", "AVIF"))
    most = wide.get(kind, 65_535)
    size = chance.choice(((1, 1), (most, 1), (1, most), (most, 32), (31, 32), (32, 32)))
    data = _plain(kind, size)
    if kind != "JPEG" or size[0] != most:
        return data
    # libjpeg writes at most 65,500; the format allows 65,535.
    at = data.index(b"\xff\xc0") + 7
    return data[:at] + struct.pack(">H", 65_535) + data[at + 2 :]


KINDS: dict[str, Kind] = {
    "truncated": _truncated,
    "bits flipped": _flipped,
    "header flipped": _flipped_header,
    "overwritten": _overwritten,
    "spliced": _spliced,
    "PNG with good checksums": _png_behind_its_checksums,
    "bomb": _bomb,
    "polyglot": _polyglot,
    "other format": _other_format,
    "16 bits": _sixteen_bits,
    "CMYK, grey, palette, transparent": _odd_colours,
    "EXIF and ICC": _odd_metadata,
    "animated": _animated,
    "odd size": _odd_size,
}

_PNG = b"\x89PNG\r\n\x1a\n"


@cache
def _plain(kind: str, size: tuple[int, int]) -> bytes:
    return _encoded(Image.new("RGB", size, (120, 40, 20)), kind)


@cache
def _compressed_zeros(mebibytes: int) -> bytes:
    packer = zlib.compressobj()
    return b"".join([packer.compress(bytes(1 << 20)) for _ in range(mebibytes)] + [packer.flush()])


def _opened(data: bytes, side: int) -> Image.Image:
    return ImageOps.fit(Image.open(io.BytesIO(data)).convert("RGB"), (side, side))


def _encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    # Fast rather than small: thousands are made.
    picture.save(file, kind, **{"compress_level": 1, "method": 0, **options})
    return file.getvalue()


def _exif(orientation: int = 6) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return len(content).to_bytes(4) + kind + content + checksum.to_bytes(4)


def _with_chunk(png: bytes, chunk: bytes) -> bytes:
    end_of_header = 8 + 25
    return png[:end_of_header] + chunk + png[end_of_header:]
