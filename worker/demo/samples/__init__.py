"""The sample pictures of the demonstration, and bad uploads."""

import io
from dataclasses import dataclass
from importlib import resources
from typing import Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, TypeAdapter


class Sample(BaseModel):
    """A sample picture with its truth and its source; `file` is its name in this package."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    truth: Literal["real", "generated"]
    title: str
    family: str
    source: str
    licence: str
    author: str
    change: str

    def read(self) -> bytes:
        """Return the encoded picture."""
        return resources.files(__name__).joinpath(self.file).read_bytes()


@dataclass(frozen=True)
class BadUpload:
    """An upload that is rejected; `data` is None for a missing object."""

    file: str
    data: bytes | None
    title: str


def load_samples() -> list[Sample]:
    """Return the samples in display order."""
    listing = resources.files(__name__).joinpath("samples.json").read_bytes()
    return TypeAdapter(list[Sample]).validate_json(listing)


def bad_uploads() -> list[BadUpload]:
    """Return one upload for each common reason of rejection."""
    photograph = load_samples()[0].read()
    text = b"A shopping list is no picture, whatever its name says.\n"
    return [
        BadUpload("notes.jpg", text, "a text file named .jpg"),
        BadUpload("cut-off.jpg", photograph[: len(photograph) // 2], "half of a JPEG file"),
        BadUpload("empty.jpg", b"", "an empty file"),
        # 400 million pixels in 50 kB, rejected by its header alone.
        BadUpload("bomb.png", _encoded("1", 20_000, "PNG"), "20,000 x 20,000 pixels"),
        BadUpload("scan.tiff", _encoded("RGB", 64, "TIFF"), "a TIFF file"),
        BadUpload("dot.png", _encoded("RGB", 16, "PNG"), "16 x 16 pixels"),
        BadUpload("gone.jpg", None, "a missing object"),
    ]


def _encoded(mode: str, side: int, image_format: str) -> bytes:
    encoded = io.BytesIO()
    Image.new(mode, (side, side)).save(encoded, image_format)
    return encoded.getvalue()
