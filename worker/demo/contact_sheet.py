"""The contact sheet: each picture beside its noise feature, with its verdict; as HTML and as PNG."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

from PIL import Image

from detector.bundle.calibration import Thresholds
from detector.policy import VerdictName

Truth = Literal["real", "generated"]

NOTE = (
    "A score is a signal, not proof. No verdict here should be the only ground for a decision about a person."
)
WORDS: dict[VerdictName, str] = {"real": "real", "review": "needs review", "generated": "generated"}
TRUTHS: dict[Truth, str] = {"real": "a photograph", "generated": "a generated picture"}


@dataclass(frozen=True)
class JudgedPicture:
    """One picture with its verdict.

    `picture` and `thumbnail` are encoded image files; `score` is the probability of *generated*, 0..1;
    `truth` is what the picture is known to be, if it is; `origin` and `credit` say where it is from;
    `stages` are the parts of `milliseconds` by name.
    """

    title: str
    picture: bytes
    thumbnail: bytes | None
    verdict: VerdictName
    score: float
    milliseconds: float
    truth: Truth | None = None
    origin: str = ""
    credit: str = ""
    stages: Mapping[str, float] = field(default_factory=dict)

    @property
    def agreement(self) -> str:
        """How the verdict stands to the truth: "right", "wrong", or "open" when there is no telling."""
        if self.truth is None or self.verdict == "review":
            return "open"
        return "right" if self.verdict == self.truth else "wrong"


@dataclass(frozen=True)
class RejectedUpload:
    """One upload that was not judged, with the reason from the closed list and a detail for people."""

    title: str
    reason: str
    detail: str


@dataclass(frozen=True)
class ContactSheet:
    """All that a sheet shows; `model` names the detector."""

    judged: Sequence[JudgedPicture]
    rejected: Sequence[RejectedUpload]
    model: str
    thresholds: Thresholds

    def summary(self) -> str:
        """Return the counts in one sentence."""
        counts = [
            f"{sum(item.verdict == verdict for item in self.judged)} {word}"
            for verdict, word in WORDS.items()
        ]
        return f"{len(self.judged)} pictures judged: {', '.join(counts)}. Rejected: {len(self.rejected)}."

    def reading_guide(self) -> str:
        """Return the sentence that says what the numbers mean."""
        low, high = self.thresholds.review_from, self.thresholds.generated_from
        return (
            f"Score: the estimated probability that the picture is generated. Review from {low:.2f}, "
            f"generated from {high:.2f}. Right of each picture: its Diffusion Noise Feature."
        )


_STYLE = """
:root { color-scheme: light dark; --page: #f4f5f7; --card: #fff; --text: #16191d; --quiet: #5c6570;
  --line: #dfe3e8; --real: #0f7b4f; --review: #a15c00; --generated: #c02637; }
@media (prefers-color-scheme: dark) { :root { --page: #101317; --card: #1a1f25; --text: #eceff3;
  --quiet: #9aa5b1; --line: #2c343d; --real: #3ecf8e; --review: #f0a63a; --generated: #ff6b78; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 2rem clamp(1rem, 4vw, 3.5rem); background: var(--page); color: var(--text);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { margin: 0 0 .25rem; font-size: 1.6rem; letter-spacing: -.01em; } h2 { margin: 2.2rem 0 .8rem; }
p { margin: .2rem 0; max-width: 75ch; } .quiet { color: var(--quiet); }
.note { margin: 1rem 0 1.6rem; padding: .6rem .9rem; border-left: 3px solid var(--review);
  background: var(--card); }
.grid { display: grid; gap: 1.1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); }
article { overflow: hidden; background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.pair { display: grid; grid-template: 11rem / 3fr 2fr; gap: 2px; background: var(--line); }
.pair img { width: 100%; height: 100%; min-height: 0; object-fit: cover; display: block; }
.pair img + img { image-rendering: pixelated; }
.text { padding: .8rem 1rem 1rem; }
.row { display: flex; gap: .6rem; align-items: center; justify-content: space-between; }
h3 { margin: 0; font-size: 1.02rem; } .pill { padding: .1rem .65rem; border: 1.5px solid; border-radius: 99px;
  font-weight: 650; font-size: .85rem; white-space: nowrap; }
.real { color: var(--real); } .review { color: var(--review); } .generated { color: var(--generated); }
.bar { position: relative; height: 6px; margin: .7rem 0 .5rem; border-radius: 3px; background: var(--line); }
.bar b { position: absolute; inset: 0 auto 0 0; border-radius: 3px; background: currentColor; }
.bar i { position: absolute; top: -3px; bottom: -3px; width: 2px; background: var(--quiet); }
small { display: block; color: var(--quiet); font-size: .8rem; overflow-wrap: anywhere; }
.score { font-variant-numeric: tabular-nums; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; background: var(--card); } th, td { padding: .5rem .9rem; text-align: left;
  border: 1px solid var(--line); } code { font-size: .9em; }
"""


def render_html(sheet: ContactSheet) -> str:
    """Return a page that needs no other file; every text in it is escaped."""
    cards = "\n".join(_card(item, sheet.thresholds) for item in sheet.judged)
    rows = "\n".join(
        f"<tr><td>{escape(item.title)}</td><td><code>{escape(item.reason)}</code></td>"
        f"<td>{escape(item.detail)}</td></tr>"
        for item in sheet.rejected
    )
    rejected = (
        "<h2>Rejected uploads</h2><div class='scroll'><table><tr><th>Upload</th><th>Reason</th>"
        f"<th>What it means</th></tr>{rows}</table></div>"
        if rows
        else ""
    )
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Verdicts</title><style>{_STYLE}</style></head>
<body>
<h1>Verdicts</h1>
<p>{escape(sheet.summary())}</p>
<p class="quiet">{escape(sheet.reading_guide())} Model: {escape(sheet.model)}.</p>
<p class="note">{escape(NOTE)}</p>
<main class="grid">
{cards}
</main>
{rejected}
</body>
</html>
"""


def _card(item: JudgedPicture, thresholds: Thresholds) -> str:
    marks = {"right": "✓", "wrong": "✗", "open": "·"}
    truth = f"{marks[item.agreement]} Truly {TRUTHS[item.truth]}" if item.truth else ""
    details = " · ".join(part for part in (item.origin, f"{item.milliseconds:.0f} ms", item.credit) if part)
    ticks = "".join(
        f'<i style="left:{100 * cut:.2f}%"></i>'
        for cut in (thresholds.review_from, thresholds.generated_from)
    )
    feature = (
        f'<img alt="Noise feature of {escape(item.title)}" src="{_data_uri(item.thumbnail)}">'
        if item.thumbnail
        else ""
    )
    return f"""<article>
<div class="pair"><img alt="{escape(item.title)}" src="{_data_uri(item.picture)}">{feature}</div>
<div class="text"><div class="row"><h3>{escape(item.title)}</h3>
<span class="pill {item.verdict}">{WORDS[item.verdict]}</span></div>
<div class="bar {item.verdict}"><b style="width:{100 * item.score:.2f}%"></b>{ticks}</div>
<div class="row"><span>{escape(truth)}</span><span class="score">score {item.score:.3f}</span></div>
<small>{escape(details)}</small></div></article>"""


def _data_uri(encoded: bytes) -> str:
    kind = Image.open(io.BytesIO(encoded)).get_format_mimetype()
    return f"data:{kind};base64,{base64.b64encode(encoded).decode('ascii')}"
