"""The parts of a GIF file."""

from detector.images.container import Container, bounded, corrupt_header, incomplete

SIGNATURES = (b"GIF87a", b"GIF89a")
_EXTENSION, _IMAGE, _CONTROL = 0x21, 0x2C, 0xF9


def take_apart(data: bytes) -> Container:
    """Return the parts of a GIF file, of its first frame. Raises `ImageRejectedError`."""
    if len(data) < 13:  # noqa: PLR2004 - signature, screen and flags
        raise corrupt_header("GIF")
    begin = 13 + _colour_table(data[10])
    control, image = _first_image(data, begin)
    descriptor = data[image + 1 : image + 10]
    if len(descriptor) < 9:  # noqa: PLR2004 - place, size and flags
        raise incomplete()
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


def _first_image(data: bytes, at: int) -> tuple[bytes, int]:
    """Return the graphic control extension before the first frame, and where the frame begins."""
    control = b""
    parts = bounded()
    while True:
        introducer = data[at : at + 1]
        if not introducer or introducer == b";":
            raise incomplete()
        if introducer[0] == _IMAGE:
            return control, at
        if introducer[0] != _EXTENSION:
            next(parts)
            at += 1
            continue
        begin = at
        at += 2
        while at < len(data) and data[at]:
            next(parts)
            at += data[at] + 1
        at += 1
        if data[begin + 1 : begin + 2] == bytes([_CONTROL]) and at - begin == 8:  # noqa: PLR2004
            control = data[begin:at]


def _colour_table(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0
