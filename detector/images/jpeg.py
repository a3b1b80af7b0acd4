"""The parts of a JPEG file."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from detector.images.container import (
    MAX_METADATA_BYTES,
    Container,
    ImageRejectedError,
    bounded,
    corrupt_header,
    incomplete,
)

SIGNATURE = b"\xff\xd8\xff"
#: Scans of a JPEG, each of which a decoder carries over the whole picture; a progressive one has about ten.
MAX_JPEG_SCANS = 50

# A JPEG marker that is followed by a length, or ends the picture.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_EXIF, _ICC = 0xE1, 0xE2
_EXIF_PARTS = 64
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_START_OF_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
# Frame, scans, tables and restart intervals, and what names the colour space.
_DECODED = {*_START_OF_FRAME, _START_OF_SCAN, 0xDB, 0xC4, 0xCC, 0xDD}
_COLOUR_SPACES = {(0xE0, b"JFIF\0"), (0xEE, b"Adobe")}
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_ICC_HEADER = b"ICC_PROFILE\0"


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


@dataclass
class _Parts:
    """What was read of a JPEG so far."""

    frame: _Frame | None = None
    scans: list[bytes] = field(default_factory=list)
    #: What the decoder is given.
    kept: list[bytes | memoryview] = field(default_factory=lambda: [b"\xff\xd8"])
    exif: list[bytes] = field(default_factory=list)
    #: Parts of the profile by their number.
    profile: dict[int, bytes] = field(default_factory=dict)

    def add(self, marker: int, body: bytes, coded: memoryview) -> None:
        """Add a segment, and the coded pixels after it. Raises `ImageRejectedError`."""
        if marker == _START_OF_SCAN:
            self._add_scan(body)
        elif marker in _START_OF_FRAME:
            if self.frame:
                raise ImageRejectedError("corrupt", "The file holds a second picture inside its first.")
            self.frame = _start_of_frame(marker, body)
        elif marker == _EXIF and body.startswith(b"Exif\0\0"):
            self.exif.append(body[6:])
        elif marker == _ICC and body.startswith(_ICC_HEADER) and len(body) > len(_ICC_HEADER):
            self.profile.setdefault(body[len(_ICC_HEADER)], body[len(_ICC_HEADER) + 2 :])
        if marker in _DECODED or (marker, body[:5]) in _COLOUR_SPACES:
            self.kept += [bytes([0xFF, marker]), (len(body) + 2).to_bytes(2, "big"), body, coded]

    def _add_scan(self, body: bytes) -> None:
        # The number of components, two bytes for each, and three on the coefficients.
        if not body or len(body) != 4 + 2 * body[0]:
            raise ImageRejectedError("corrupt", "A scan of the picture has a damaged header.")
        self.scans.append(body)
        if len(self.scans) > MAX_JPEG_SCANS:
            raise ImageRejectedError(
                "too_much_metadata", f"The picture has more than {MAX_JPEG_SCANS} scans."
            )


def take_apart(data: bytes) -> Container:
    """Return the parts of a JPEG file, of its first picture. Raises `ImageRejectedError`."""
    parts, ended = _Parts(), False
    for marker, body, coded in _segments(data):
        parts.add(marker, body, coded)
        ended = marker == _END_OF_IMAGE
    frame = parts.frame
    if not frame:
        raise corrupt_header("JPEG")
    if not parts.scans or not (ended or _all_details(frame, parts.scans)):
        raise incomplete()
    count = len(frame.components)
    # Several scans are gathered as coefficients of two bytes before the first pixel is computed.
    gathered = 2 * count if len(parts.scans) > 1 or frame.marker in _PROGRESSIVE else 0
    image_bytes = frame.width * frame.height * (1 if count == 1 else 4)
    profile = b"".join(parts.profile[number] for number in sorted(parts.profile))
    return Container(
        format="JPEG",
        pieces=(*parts.kept, b"\xff\xd9"),
        width=frame.width,
        height=frame.height,
        coded_pixels=frame.coded_pixels,
        decoder_bytes=image_bytes + gathered * frame.coded_pixels,
        image_bytes=image_bytes,
        # Only the first part has a header; a later one goes on where it ended.
        exif=b"".join(parts.exif[:_EXIF_PARTS])[:MAX_METADATA_BYTES],
        icc_profile=profile if len(profile) <= MAX_METADATA_BYTES else b"",
        unfinished=not ended,
    )


def _segments(data: bytes) -> Iterator[tuple[int, bytes, memoryview]]:
    """Yield marker and body of each segment of the first picture, and after a scan's the coded pixels."""
    at = 2
    for _ in bounded():
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


def _start_of_frame(marker: int, body: bytes) -> _Frame:
    count = body[5] if len(body) > 5 else 0  # noqa: PLR2004 - precision, height, width, count
    parts = [body[at : at + 3] for at in range(6, 6 + 3 * count, 3)]
    components = [(part[0], part[1] >> 4, part[1] & 15) for part in parts if len(part) == 3]  # noqa: PLR2004
    width, height = int.from_bytes(body[3:5], "big"), int.from_bytes(body[1:3], "big")
    whole = count and len(components) == count and all(h and v for _, h, v in components)
    if not whole or not width:
        raise corrupt_header("JPEG")
    if not height:
        raise ImageRejectedError("corrupt", "The picture does not say how high it is.")
    return _Frame(marker, width, height, components)


def _all_details(frame: _Frame, scans: list[bytes]) -> bool:
    """Return whether the scans hold every coefficient of every component to its last bit."""
    missing = {(component, place) for component, _, _ in frame.components for place in range(64)}
    for scan in scans:
        end = 1 + 2 * scan[0]
        first, last, bits = (0, 63, 0) if frame.marker not in _PROGRESSIVE else scan[end : end + 3]
        if not bits & 15:
            missing -= {(component, k) for component in scan[1:end:2] for k in range(first, last + 1)}
    return not missing
