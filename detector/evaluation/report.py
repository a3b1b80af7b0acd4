"""The evaluation's files: report.json for programs, report.html for people, figures.md for a model card."""

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any, cast

from rich import box
from rich.console import Console

from detector.bundle.files import Bundle
from detector.evaluation.evaluation import ControlResult, SplitEvaluation
from detector.evaluation.plots import split_plots
from detector.evaluation.scoring import Scored
from detector.evaluation.tables import split_tables

JSON_FILE = "report.json"
PAGE_FILE = "report.html"
FIGURES_FILE = "figures.md"
FEW_PICTURES = 50

_TEMPLATE = "report.html.j2"
_WIDEST_TABLE = 400


@dataclass(frozen=True)
class Evaluation:
    """What was measured and how: `device` and `dtype` of the networks, `date` in ISO 8601, the `command`.

    `limit` is the most pictures taken of a split, None for all.
    """

    bundle: Bundle
    device: str
    dtype: str
    date: str
    command: str
    limit: int | None
    splits: list[SplitEvaluation]


def write_report(evaluation: Evaluation, corpus: Path, folder: Path) -> Path:
    """Write report.json, report.html, figures.md and the plots as PNG to `folder`; return the page's path.

    Raises ImportError where matplotlib or Jinja is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(as_json(evaluation, corpus), indent=2, allow_nan=False)
    (folder / JSON_FILE).write_text(content + "\n", encoding="utf-8")
    thresholds = evaluation.bundle.manifest.thresholds
    plots = {result.split: split_plots(result, thresholds) for result in evaluation.splits}
    (folder / "plots").mkdir(exist_ok=True)
    for split, drawn in plots.items():
        for name, png in drawn.items():
            (folder / "plots" / f"{split}-{name}.png").write_bytes(png)
    (folder / FIGURES_FILE).write_text(as_markdown(evaluation), encoding="utf-8")
    page = folder / PAGE_FILE
    page.write_text(render(evaluation, plots), encoding="utf-8")
    return page


def as_markdown(evaluation: Evaluation) -> str:
    """Return the tables as Markdown, for a model card."""
    console = Console(file=StringIO(), width=_WIDEST_TABLE)
    console.print(f"`{evaluation.command}` ({evaluation.device}, {evaluation.dtype})", soft_wrap=True)
    for result in evaluation.splits:
        for table in split_tables(result):
            console.print(f"\n### {table.title}", end="")
            table.title, table.box = None, box.MARKDOWN
            console.print(table)
    text = cast("StringIO", console.file).getvalue()
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def as_json(evaluation: Evaluation, corpus: Path) -> dict[str, Any]:
    """Return everything that was measured, with the score of each picture by its path in the corpus."""
    manifest = evaluation.bundle.manifest
    return {
        "bundle": {
            "name": manifest.name,
            "version": manifest.version,
            "digest": evaluation.bundle.digest,
            "feature": manifest.feature,
            "thresholds": manifest.thresholds.model_dump(),
        },
        "device": evaluation.device,
        "dtype": evaluation.dtype,
        "date": evaluation.date,
        "command": evaluation.command,
        "limit": evaluation.limit,
        "splits": {result.split: _split_json(result, corpus) for result in evaluation.splits},
    }


def render(evaluation: Evaluation, plots: Mapping[str, Mapping[str, bytes]]) -> str:
    """Return the page: one self-contained HTML document; `plots` are PNG bytes by split and name."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(_TEMPLATE).render(
        evaluation=evaluation,
        manifest=evaluation.bundle.manifest,
        plots={
            split: {name: base64.b64encode(png).decode() for name, png in drawn.items()}
            for split, drawn in plots.items()
        },
        few=FEW_PICTURES,
    )


def _split_json(result: SplitEvaluation, corpus: Path) -> dict[str, Any]:
    return {
        "overall": asdict(result.overall),
        "altered_pictures": result.altered_pictures,
        "as_is_auroc": asdict(result.as_is_auroc),
        "families": [asdict(row) for row in result.families],
        "controls": [asdict(control) for control in result.controls],
        "largest_shift": _shift_json(result.largest_shift),
        "largest_shift_by_encoding": _shift_json(result.largest_shift_by_encoding),
        "curves": [asdict(curve) for curve in result.curves],
        "stability": asdict(result.stability) if result.stability else None,
        "comparison": [asdict(row) for row in result.comparison],
        "unreadable": [
            {"path": _relative(item.sample.path, corpus), "reason": item.reason, "detail": item.detail}
            for item in result.unreadable
        ],
        "pictures": [_picture_json(item, corpus) for item in result.scored],
        "rivals_pictures": {
            name: [_picture_json(item, corpus) for item in scored]
            for name, scored in result.rivals_scored.items()
        },
    }


def _shift_json(control: ControlResult) -> dict[str, Any]:
    return {"control": control.name, "shift": asdict(control.shift)}


def _picture_json(item: Scored, corpus: Path) -> dict[str, Any]:
    return {
        "path": _relative(item.path, corpus),
        "family": item.family,
        "label": "generated" if item.generated else "real",
        "logit": item.logit,
        "probability": item.probability,
    }


def _relative(path: Path, corpus: Path) -> str:
    return path.relative_to(corpus).as_posix() if path.is_relative_to(corpus) else path.as_posix()
