"""The judged picture, as moderators see it: fetched within the worker's limits, verified, encoded anew."""

from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import numpy as np
from PIL import Image

from detector.images.container import ImageRejectedError
from detector.images.decode import ImageLimits, Picture, open_picture
from detector.images.memory import MemoryBudget
from worker.contract.messages import ImageCheck, VerdictEvent, ViewScore
from worker.settings import Settings
from worker.storage import Storage, StorageRejectedError

#: Longest side of the overview in pixels; a smaller picture is shown as it is.
OVERVIEW_SIDE = 1600
#: Up to so many pixels a picture is encoded without loss; a larger one as JPEG of quality 95.
LOSSLESS_PIXELS = 8_000_000

Part = Literal["overview", "native", "strongest"]
PictureFault = Literal["picture_changed", "picture_missing", "picture_unreadable"]

_JPEG_QUALITY = {"overview": 90, "native": 95, "strongest": 95}
# Of the square that stands for a picture whose event names no views, in pixels.
_MIDDLE = 160
_DETAILS: dict[str, tuple[PictureFault, str]] = {
    "digest_mismatch": (
        "picture_changed",
        "The object in the store is no longer the picture that was judged, so it cannot be decided.",
    ),
    "missing": ("picture_missing", "The picture is no longer in the store, so it cannot be decided."),
}


class PictureError(Exception):
    """The picture that was judged cannot be had; `reason` is one of `PictureFault`, `str()` the detail."""

    def __init__(self, reason: PictureFault, detail: str) -> None:
        super().__init__(detail)
        self.reason: PictureFault = reason


@dataclass(frozen=True)
class Rendered:
    """A picture for a browser."""

    data: bytes
    media_type: str
    #: Of the object from which it was made: that of the verdict.
    sha256: str


class Pictures:
    """Fetches judged pictures; safe for threads, with one budget of memory for all of them."""

    def __init__(self, settings: Settings, storage: Storage) -> None:
        self._storage = storage
        self._limits = ImageLimits(max_pixels=settings.max_pixels)
        self._memory = MemoryBudget(settings.decode_memory_bytes)
        self._seconds = settings.check_deadline_seconds / 2

    def verify(self, event: VerdictEvent) -> None:
        """Fetch the object and compare its digest with the verdict's.

        Raises `PictureError`, and `StorageUnavailableError`.
        """
        self._fetch(event)

    def render(self, event: VerdictEvent, part: Part) -> Rendered:
        """Return the first frame upright in sRGB: all of it, or the strongest view without loss.

        Raises `PictureError`, `StorageUnavailableError` and `MemoryBudgetError`.
        """
        data = self._fetch(event)
        try:
            encoded = open_picture(data, self._limits)
            needed = encoded.memory_bytes + encoded.rgb_bytes
            with self._memory.reserve(needed, timeout_seconds=self._seconds):
                image = _cut(encoded.decode(), event, part)
        except ImageRejectedError as error:
            raise PictureError("picture_unreadable", str(error)) from error
        lossless = image.width * image.height <= LOSSLESS_PIXELS and part != "overview"
        if part == "overview" and max(image.size) > OVERVIEW_SIDE:
            image.thumbnail((OVERVIEW_SIDE, OVERVIEW_SIDE), Image.Resampling.LANCZOS)
        elif part == "overview":
            lossless = True
        file = BytesIO()
        if lossless:
            image.save(file, "PNG", compress_level=1)
        else:
            image.save(file, "JPEG", quality=_JPEG_QUALITY[part], subsampling=0)
        kind = "image/png" if lossless else "image/jpeg"
        return Rendered(file.getvalue(), kind, event.data.picture.sha256)

    def _fetch(self, event: VerdictEvent) -> bytes:
        bucket, _, key = event.subject.removeprefix("s3://").partition("/")
        try:
            check = ImageCheck(bucket=bucket, key=key, sha256=event.data.picture.sha256)
            return self._storage.fetch(check).data
        except StorageRejectedError as error:
            reason, detail = _DETAILS.get(error.reason, ("picture_unreadable", str(error)))
            raise PictureError(reason, detail) from error
        except ValueError as error:
            raise PictureError("picture_unreadable", "The event names no object of the store.") from error


def strongest_view(event: VerdictEvent) -> ViewScore:
    """Return the view most like *generated*; for an event without views, the middle of the picture."""
    data = event.data
    if data.strongest_view is not None and data.strongest_view < len(data.views):
        return data.views[data.strongest_view]
    facts = data.picture
    width, height = min(facts.width, _MIDDLE), min(facts.height, _MIDDLE)
    x, y = (facts.width - width) // 2, (facts.height - height) // 2
    return ViewScore(x=x, y=y, width=width, height=height, score=data.score)


def _cut(picture: Picture, event: VerdictEvent, part: Part) -> Image.Image:
    if part != "strongest":
        return Image.fromarray(np.ascontiguousarray(picture.pixels))
    view = strongest_view(event)
    if view.x >= picture.width or view.y >= picture.height:
        raise PictureError("picture_unreadable", "The event's view lies outside of the picture.")
    pixels = picture[view.y : view.y + view.height, view.x : view.x + view.width]
    return Image.fromarray(np.ascontiguousarray(pixels))
