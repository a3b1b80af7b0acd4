"""The tables of the demonstration in the terminal."""

from rich import box
from rich.table import Table

from detector.policy import VerdictName
from detector.terminal import Console, shown
from worker.demo.contact_sheet import MARKS, ContactSheet

STYLES: dict[VerdictName, str] = {"real": "green", "review": "yellow", "generated": "red"}
VERDICT_WIDTH, STAGE_WIDTH = 64, 9
_SHORT = {
    "queue_wait": "queue",
    "prepare": "prep",
    "batch_wait": "batch",
    "classify": "class",
    "thumbnail": "thumb",
}
AGREEMENT_STYLES = {"right": "green", "wrong": "red", "open": "default"}


def print_tables(console: Console, sheet: ContactSheet) -> None:
    """Print the verdicts with the time of each stage, and the rejections with their reasons."""
    stages = list(dict.fromkeys(stage for item in sheet.judged for stage in item.stages))
    verdicts = _table(f"Verdicts of {shown(sheet.model)}, with the milliseconds of each stage")
    # A narrow terminal shows the stages in a second table instead of truncating them.
    wide = console.width >= VERDICT_WIDTH + STAGE_WIDTH * len(stages)
    times = verdicts if wide else _table("Milliseconds of each stage")
    for name in ["Picture", "Verdict", "Score", "Actually"]:
        verdicts.add_column(name, no_wrap=True, justify="right" if name == "Score" else "left")
    if not wide:
        times.add_column("Picture", no_wrap=True, max_width=15)
    for name in [*stages, "total"]:
        heading = name.replace("_", " ") if wide else _SHORT.get(name, name)
        times.add_column(heading, justify="right", no_wrap=True)
    for item in sheet.judged:
        verdict = [
            shown(item.title),
            f"[{STYLES[item.verdict]}]{item.verdict}[/]",
            f"{item.score:.3f}",
            f"[{AGREEMENT_STYLES[item.agreement]}]{MARKS[item.agreement]}[/] {item.truth or ''}",
        ]
        spent = [f"{item.stages[stage]:.0f}" if stage in item.stages else "" for stage in stages]
        spent.append(f"{item.milliseconds:.0f}")
        if wide:
            verdicts.add_row(*verdict, *spent)
        else:
            verdicts.add_row(*verdict)
            times.add_row(shown(item.title), *spent)
    console.print(verdicts)
    if not wide:
        console.print(times)
    rejections = _table("Rejected uploads")
    for name in ["Upload", "Reason", "Detail"]:
        rejections.add_column(name)
    for upload in sheet.rejected:
        rejections.add_row(shown(upload.title), f"[yellow]{upload.reason}[/]", shown(upload.detail))
    console.print(rejections)


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
