"""The parts of an AVIF file, and what they make a decoder work on, read from the AV1 bitstreams.

Pillow takes the size of the picture from the container, and the decoder takes it from the bitstream. Only the
latter says what decoding costs. References: ISO/IEC 14496-12 (boxes), ISO/IEC 23008-12 (items), and the AV1
Bitstream & Decoding Process Specification, sections 5.5 (sequence header) and 5.9 (frame header).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from detector.images.container import Container, ImageRejectedError

#: Boxes, items and bitstream units of one file that are read; a picture has a few dozen.
MAX_UNITS = 20_000
# A box's header: length and kind.
_HEADER = 8
# Bytes in which brands are looked for.
_MAX_BRANDS = 4096
_HEIF_BRANDS = {b"mif1", b"msf1", b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis"}
_SEQUENCE_HEADER, _FRAME_HEADER, _FRAME = 1, 3, 6
_KEY_FRAME, _INTRA_ONLY_FRAME, _SWITCH_FRAME = 0, 2, 3
_CHOSEN_PER_FRAME = 2


class FramesError(Exception):
    """The file does not say what it makes a decoder work on; `str()` says what is wrong."""


def take_apart(data: bytes) -> Container | None:
    """Return the parts of an AVIF file, of its first frame; None for another file of boxes.

    Raises `ImageRejectedError`, for a HEIC picture too.
    """
    end = min(int.from_bytes(data[:4], "big"), len(data), _MAX_BRANDS)
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, end, 4))}
    if not brands & {b"avif", b"avis"}:
        if brands & _HEIF_BRANDS:
            raise ImageRejectedError("format_not_allowed", "HEIC (HEIF) is not one of the allowed formats.")
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


@dataclass(frozen=True)
class AvifFrames:
    """What decoding the picture of an AVIF file takes."""

    #: Pixels of the largest frame, or of the grid that frames are put together to.
    width: int
    height: int
    #: Pixels of all frames that are decoded for it, transparency included.
    decoded_pixels: int
    #: Bytes of a decoded sample: 2 beyond 8 bits.
    sample_bytes: int
    #: Whether the picture is put together of tiles.
    grid: bool


@dataclass
class _Coded:
    """Frames of one bitstream, or of several."""

    sizes: list[tuple[int, int]] = field(default_factory=list)
    sample_bytes: int = 1


def avif_frames(data: bytes) -> AvifFrames:
    """Return the frames that a decoder works on for the picture of an AVIF file. Raises `FramesError`."""
    try:
        items, grids = _coded_items(data)
        tracks = _coded_tracks(data)
    except (IndexError, ValueError) as error:
        raise FramesError("its boxes cannot be read") from error
    sizes = [*items.sizes, *tracks.sizes, *grids]
    if not items.sizes and not tracks.sizes:
        raise FramesError("it holds no picture")
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    decoded = max(sum(w * h for w, h in coded.sizes) for coded in (items, tracks))
    sample_bytes = max(items.sample_bytes, tracks.sample_bytes)
    return AvifFrames(width, height, decoded, sample_bytes, grid=bool(grids))


def without_exif(data: bytes) -> tuple[bytes | memoryview, ...]:
    """Return the file, in pieces, with EXIF data that nobody finds: the container orients its picture."""
    view, pieces, done = memoryview(data), list[bytes | memoryview](), 0
    for kind, begin, end in _boxes(data, 0, len(data)):
        for _, item_kind, at in _item_kinds(data, begin, end) if kind == b"meta" else ():
            if item_kind == b"Exif" and at >= done:
                pieces += [view[done:at], b"skip"]
                done = at + 4
    return (*pieces, view[done:])


def _coded_items(data: bytes) -> tuple[_Coded, list[tuple[int, int]]]:
    """Return the frames of all coded items, and the sizes of the grids."""
    coded, grids = _Coded(), []
    for kind, begin, end in _boxes(data, 0, len(data)):
        if kind != b"meta":
            continue
        kinds = {item: item_kind for item, item_kind, _ in _item_kinds(data, begin, end)}
        for item, content in _item_contents(data, begin, end):
            if kinds.get(item) == b"av01":
                _add_bitstream(coded, content)
            elif kinds.get(item) == b"grid" and len(content) >= 8:  # noqa: PLR2004 - version, flags, cells, size
                wide = 4 if content[1] & 1 else 2
                width, height = content[4 : 4 + wide], content[4 + wide : 4 + 2 * wide]
                grids.append((int.from_bytes(width, "big"), int.from_bytes(height, "big")))
    return coded, grids


def _coded_tracks(data: bytes) -> _Coded:
    """Return the first frame of each track."""
    coded = _Coded()
    for kind, begin, end in _boxes(data, 0, len(data)):
        if kind != b"moov":
            continue
        for track_kind, track_begin, track_end in _boxes(data, begin, end):
            if track_kind == b"trak":
                _add_bitstream(coded, _first_sample(data, track_begin, track_end))
    return coded


def _first_sample(data: bytes, begin: int, end: int) -> bytes:
    """Return the first sample of a track; none when the track does not hold AV1."""
    for kind in (b"mdia", b"minf", b"stbl"):
        found = next((box for box in _boxes(data, begin, end) if box[0] == kind), None)
        if not found:
            return b""
        _, begin, end = found
    table = {kind: data[start:stop] for kind, start, stop in _boxes(data, begin, end)}
    if table.get(b"stsd", b"")[12:16] != b"av01":
        return b""
    sizes = table.get(b"stsz", b"")
    length = int.from_bytes(sizes[4:8], "big") or int.from_bytes(sizes[12:16], "big")
    if b"stco" in table:
        offset = int.from_bytes(table[b"stco"][8:12], "big")
    else:
        offset = int.from_bytes(table.get(b"co64", b"")[8:16], "big")
    return data[offset : offset + length]


def _boxes(data: bytes, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, begin and end of the content of each box; a `meta` box's begins after its version."""
    for _ in range(MAX_UNITS):
        if end - begin < _HEADER:
            return
        length, kind = int.from_bytes(data[begin : begin + 4], "big"), data[begin + 4 : begin + 8]
        header = _HEADER
        if length == 1:
            length, header = int.from_bytes(data[begin + 8 : begin + 16], "big"), 16
        if length == 0:
            length = end - begin
        if length < header:
            raise FramesError("a box has no room for its header")
        yield kind, begin + header + (4 if kind == b"meta" else 0), min(begin + length, end)
        begin += length
    raise FramesError("it has too many boxes")


def _item_kinds(data: bytes, begin: int, end: int) -> Iterator[tuple[int, bytes, int]]:
    """Yield id and kind of each item of a `meta` box, and where its kind is written."""
    for kind, start, stop in _boxes(data, begin, end):
        if kind != b"iinf":
            continue
        for entry, at, _ in _boxes(data, start + (6 if data[start] == 0 else 8), stop):
            wide = 4 if data[at] == 3 else 2  # noqa: PLR2004 - the version with ids of 32 bits
            if entry == b"infe" and data[at] >= 2:  # noqa: PLR2004 - earlier versions name no kind
                place = at + 4 + wide + 2
                yield int.from_bytes(data[at + 4 : at + 4 + wide], "big"), data[place : place + 4], place


def _item_contents(data: bytes, begin: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield the id and the content of each item of a `meta` box."""
    inline = next((start for kind, start, _ in _boxes(data, begin, end) if kind == b"idat"), 0)
    for kind, start, stop in _boxes(data, begin, end):
        if kind == b"iloc":
            yield from _locations(data, _Reader(data[start:stop]), inline)


def _locations(data: bytes, reader: "_Reader", inline: int) -> Iterator[tuple[int, bytes]]:
    version, _ = reader.integer(1), reader.integer(3)
    sizes = reader.integer(2)
    offset_bytes, length_bytes, base_bytes = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_bytes = sizes & 15 if version else 0
    wide = 4 if version == 2 else 2  # noqa: PLR2004 - the version with ids of 32 bits
    read = 0
    for _ in range(min(reader.integer(wide), MAX_UNITS)):
        item = reader.integer(wide)
        method = reader.integer(2) & 15 if version else 0
        reader.integer(2)
        base = reader.integer(base_bytes) + (inline if method == 1 else 0)
        extents: list[bytes] = []
        for _ in range(reader.integer(2)):
            reader.integer(index_bytes)
            offset = base + reader.integer(offset_bytes)
            length = reader.integer(length_bytes) or len(data)
            extents.append(data[offset : offset + length])
            read += len(extents[-1]) + 1
            if read > 4 * len(data):
                raise FramesError("its items overlap")
        yield item, b"".join(extents)


class _Reader:
    """Reads big-endian integers and bits; beyond the end it raises ValueError."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._bit = 0

    def integer(self, count: int) -> int:
        """Return an unsigned integer of `count` bytes, 0 for none."""
        return self.bits(8 * count)

    def bits(self, count: int) -> int:
        """Return an unsigned integer of `count` bits."""
        begin, self._bit = self._bit, self._bit + count
        if self._bit > 8 * len(self._data):
            raise ValueError("the data ends")
        first, last = begin // 8, -(-self._bit // 8)
        value = int.from_bytes(self._data[first:last], "big") >> (8 * last - self._bit)
        return value & ((1 << count) - 1)

    def flag(self) -> bool:
        """Return one bit."""
        return bool(self.bits(1))

    def variable(self) -> int:
        """Return an unsigned integer in the specification's `uvlc()`."""
        zeros = 0
        while not self.flag():
            zeros += 1
            if zeros == 32:  # noqa: PLR2004 - the longest that the specification allows
                return 0
        return (1 << zeros) - 1 + self.bits(zeros)


@dataclass(frozen=True)
class _Sequence:
    """What a sequence header says of the frames that follow."""

    width: int
    height: int
    #: What a frame can say instead.
    widest: int
    highest: int
    reduced: bool
    #: Bits of a frame's presentation time, None where a frame has none.
    presentation_time_bits: int | None
    screen_content: int
    integer_motion: int
    #: Bits of a frame's id, 0 where it has none.
    frame_id_bits: int
    sample_bytes: int


def _add_bitstream(coded: _Coded, content: bytes) -> None:
    """Add the size of each frame in a bitstream."""
    sequence: _Sequence | None = None
    at = 0
    for _ in range(MAX_UNITS):
        if at >= len(content):
            return
        header = content[at]
        kind = header >> 3 & 15
        at += 2 if header & 4 else 1
        length = len(content) - at
        if header & 2:
            length, at = _leb128(content, at)
        unit = content[at : at + length]
        at += length
        if kind == _SEQUENCE_HEADER:
            sequence = _sequence_header(_Reader(unit))
            coded.sample_bytes = max(coded.sample_bytes, sequence.sample_bytes)
        elif kind in {_FRAME_HEADER, _FRAME}:
            if not sequence:
                raise FramesError("a frame precedes the header of its sequence")
            if size := _frame_size(sequence, _Reader(unit)):
                coded.sizes.append(size)
    raise FramesError("its bitstream has too many parts")


def _leb128(content: bytes, at: int) -> tuple[int, int]:
    value = 0
    for number in range(8):
        byte = content[at + number]
        value |= (byte & 0x7F) << 7 * number
        if not byte & 0x80:
            return value, at + number + 1
    raise FramesError("a part of its bitstream has no length")


def _sequence_header(reader: _Reader) -> _Sequence:
    profile, _, reduced = reader.bits(3), reader.flag(), reader.flag()
    time_bits: int | None = None
    if reduced:
        reader.bits(5)
    else:
        time_bits = _operating_points(reader)
    width_bits, height_bits = reader.bits(4) + 1, reader.bits(4) + 1
    width, height = reader.bits(width_bits) + 1, reader.bits(height_bits) + 1
    frame_id_bits, screen_content, integer_motion = 0, _CHOSEN_PER_FRAME, _CHOSEN_PER_FRAME
    if not reduced and reader.flag():
        frame_id_bits = reader.bits(4) + 2
        frame_id_bits += reader.bits(3) + 1
    reader.bits(3)  # superblocks, filter and edges within a frame
    if not reduced:
        reader.bits(4)  # ways of prediction
        ordered = reader.flag()
        if ordered:
            reader.bits(2)
        if not reader.flag():
            screen_content = reader.bits(1)
        if screen_content and not reader.flag():
            integer_motion = reader.bits(1)
        if ordered:
            reader.bits(3)
    reader.bits(3)  # super-resolution and filters
    deep = reader.flag()
    return _Sequence(
        width=width,
        height=height,
        widest=1 << width_bits,
        highest=1 << height_bits,
        reduced=reduced,
        presentation_time_bits=time_bits,
        screen_content=screen_content,
        integer_motion=integer_motion,
        frame_id_bits=frame_id_bits,
        sample_bytes=2 if deep or profile > 2 else 1,  # noqa: PLR2004 - profiles end at 2
    )


def _operating_points(reader: _Reader) -> int | None:
    """Read past timing and operating points; return the bits of a frame's presentation time."""
    delay_bits, time_bits, model = 0, None, False
    if reader.flag():
        reader.bits(64)  # the clock's unit and scale
        equal = reader.flag()
        if equal:
            reader.variable()
        model = reader.flag()
        if model:
            delay_bits = reader.bits(5) + 1
            reader.bits(37)
            bits = reader.bits(5) + 1
            time_bits = None if equal else bits
    display_delay = reader.flag()
    for _ in range(reader.bits(5) + 1):
        reader.bits(12)
        if reader.bits(5) > 7:  # noqa: PLR2004 - levels from 8 on have a tier
            reader.flag()
        if model and reader.flag():
            reader.bits(2 * delay_bits + 1)
        if display_delay and reader.flag():
            reader.bits(4)
    return time_bits


def _frame_size(sequence: _Sequence, reader: _Reader) -> tuple[int, int] | None:
    """Return the largest size that a frame can have; None for one that shows an earlier frame again."""
    if sequence.reduced:
        return sequence.width, sequence.height
    if reader.flag():
        return None
    kind, shown = reader.bits(2), reader.flag()
    if shown and sequence.presentation_time_bits is not None:
        reader.bits(sequence.presentation_time_bits)
    if not shown:
        reader.flag()
    if kind != _SWITCH_FRAME and not (kind == _KEY_FRAME and shown):
        reader.flag()
    reader.flag()
    screen_content = sequence.screen_content
    if screen_content == _CHOSEN_PER_FRAME:
        screen_content = reader.bits(1)
    if screen_content and sequence.integer_motion == _CHOSEN_PER_FRAME:
        reader.flag()
    reader.bits(sequence.frame_id_bits)
    if kind == _SWITCH_FRAME or reader.flag():
        return max(sequence.width, sequence.widest), max(sequence.height, sequence.highest)
    return sequence.width, sequence.height
