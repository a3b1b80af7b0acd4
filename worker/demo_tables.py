"""The demonstration's tables for the terminal."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from detector.policy import VerdictName
from worker.contact_sheet import TRUTHS, WORDS, ContactSheet

STYLES: dict[VerdictName, str] = {"real": "green", "review": "yellow", "generated": "red"}
MARKS = {"right": "[green]✓[/]", "wrong": "[red]✗[/]", "open": "·"}


def print_tables(console: Console, sheet: ContactSheet) -> None:
    """Print the verdicts with the milliseconds of each stage, and the rejections with their reasons."""
    stages = list(dict.fromkeys(stage for item in sheet.judged for stage in item.stages))
    verdicts = Table("Picture", "Verdict", title=f"Verdicts of {escape(sheet.model)}")
    verdicts.add_column("Score", justify="right")
    verdicts.add_column("Truly")
    verdicts.add_column("", width=1)
    for name in [*stages, "ms in all"]:
        verdicts.add_column(name, justify="right")
    for item in sheet.judged:
        verdicts.add_row(
            escape(item.title),
            f"[{STYLES[item.verdict]}]{WORDS[item.verdict]}[/]",
            f"{item.score:.3f}",
            escape(TRUTHS[item.truth] if item.truth else ""),
            MARKS[item.agreement],
            *(f"{item.stages[stage]:.0f}" if stage in item.stages else "" for stage in stages),
            f"{item.milliseconds:.0f}",
        )
    console.print(verdicts)
    rejections = Table("Upload", "Reason", "What it means", title="Rejected uploads")
    for upload in sheet.rejected:
        rejections.add_row(escape(upload.title), f"[yellow]{upload.reason}[/]", escape(upload.sentence))
    console.print(rejections)
