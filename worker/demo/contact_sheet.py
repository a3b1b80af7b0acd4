"""The contact sheet: each picture beside its noise feature, with its verdict, as an HTML page."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from detector.bundle.thresholds import Thresholds
from detector.policy import VerdictName
from worker.contract.messages import ViewScore

Truth = Literal["real", "generated"]

NOTE = (
    "A score is a signal, not proof. No verdict here should be the only ground for a decision about a person."
)
LABELS: dict[VerdictName, str] = {"real": "real", "review": "needs review", "generated": "generated"}
MARKS = {"right": "✓", "wrong": "✗", "open": "·"}

_TRUTHS: dict[Truth, str] = {"real": "a photograph", "generated": "a generated picture"}


@dataclass(frozen=True)
class Outline:
    """A view and the size of the picture that it belongs to, in pixels of the picture the right way up."""

    picture_width: int
    picture_height: int
    view: ViewScore


@dataclass(frozen=True)
class JudgedPicture:
    """A picture with its verdict."""

    title: str
    #: The encoded image file.
    picture: bytes
    #: The noise feature as an encoded image file.
    thumbnail: bytes | None
    verdict: VerdictName
    #: Probability of *generated*, 0..1.
    score: float
    milliseconds: float
    #: What the picture is known to be.
    truth: Truth | None = None
    origin: str = ""
    credit: str = ""
    #: The parts of `milliseconds` by stage.
    stages: Mapping[str, float] = field(default_factory=dict)
    #: Where on the picture, which is that large, the noise feature was computed.
    outline: "Outline | None" = None

    @property
    def agreement(self) -> Literal["right", "wrong", "open"]:
        """Whether the verdict agrees with the truth; "open" for a review or an unknown truth."""
        if self.truth is None or self.verdict == "review":
            return "open"
        return "right" if self.verdict == self.truth else "wrong"

    def truth_line(self) -> str:
        """Return the truth in words, marked by the agreement; empty if it is unknown."""
        return f"{MARKS[self.agreement]} Actually {_TRUTHS[self.truth]}" if self.truth else ""

    def details(self) -> str:
        """Return origin, time and credit in one line."""
        return " · ".join(part for part in (self.origin, f"{self.milliseconds:.0f} ms", self.credit) if part)


@dataclass(frozen=True)
class RejectedUpload:
    """An upload without a verdict, with the reason from the closed list and the detail for people."""

    title: str
    reason: str
    detail: str


@dataclass(frozen=True)
class ContactSheet:
    """The content of a sheet; `model` names the detector."""

    judged: Sequence[JudgedPicture]
    rejected: Sequence[RejectedUpload]
    model: str
    thresholds: Thresholds

    def summary(self) -> str:
        """Return the number of pictures by outcome in one sentence."""
        counts = [
            f"{sum(item.verdict == verdict for item in self.judged)} {label}"
            for verdict, label in LABELS.items()
        ]
        return f"{len(self.judged)} pictures judged: {', '.join(counts)}. Rejected: {len(self.rejected)}."

    def legend(self) -> str:
        """Return what the numbers mean."""
        low, high = self.thresholds.review_from, self.thresholds.generated_from
        return (
            f"Score: the estimated probability that the picture is generated. Review from {low:.2f}, "
            f"generated from {high:.2f}. Right of each picture: the Diffusion Noise Feature of its "
            "outlined part, which is the most like a generated picture's."
        )


def render_html(sheet: ContactSheet) -> str:
    """Return a self-contained page; all text in it is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["data_uri"] = _data_uri
    return environment.get_template("contact_sheet.html.j2").render(sheet=sheet, note=NOTE, labels=LABELS)


def _data_uri(encoded: bytes) -> str:
    kind = Image.open(io.BytesIO(encoded)).get_format_mimetype()
    return f"data:{kind};base64,{base64.b64encode(encoded).decode('ascii')}"
