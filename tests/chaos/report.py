"""The measured table of promises: `python -m tests.chaos.report RESULTS PAGE` writes it into a page.

A test adds rows with the `report` fixture. They are written to the file that DNF_CHAOS_REPORT names, as
JSON lines.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

_BEGIN, _END = "<!-- measured -->\n", "<!-- end of what is measured -->"


@dataclass(frozen=True)
class Row:
    """One promise: the fault, and the outcome of the checks.

    `answered` counts verdicts, rejections and dead letters; `delay_seconds` is the longest delay, and
    `delay_since` says from when it is counted.
    """

    test: str
    fault: str
    promise: str
    checks: int
    answered: int
    doubled: int
    lost: int
    delay_seconds: float
    delay_since: str


class Report:
    """Takes the rows of one test; without a file it drops them."""

    def __init__(self, test: str, file: Path | None) -> None:
        self._test = test
        self._file = file

    def add(
        self,
        fault: str,
        promise: str,
        *,
        checks: int,
        answered: int,
        delay_seconds: float,
        delay_since: str,
        doubled: int = 0,
    ) -> None:
        """Add a row; checks without an answer count as lost."""
        row = Row(
            self._test,
            fault,
            promise,
            checks,
            answered,
            doubled,
            checks - answered,
            round(delay_seconds, 1),
            delay_since,
        )
        if self._file:
            with self._file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(asdict(row)) + "\n")


def table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| fault | promise | checks | answered | doubled | lost | worst delay | test |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.fault} | {row.promise} | {row.checks:,} | {row.answered:,} | {row.doubled} | {row.lost} |"
        f" {row.delay_seconds:.1f} s {row.delay_since} | `{row.test}` |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def main(results: Path, page: Path) -> None:
    """Replace the table between the page's marks by that of the results."""
    rows = [Row(**json.loads(line)) for line in results.read_text(encoding="utf-8").splitlines()]
    before, _, rest = page.read_text(encoding="utf-8").partition(_BEGIN)
    after = rest.partition(_END)[2]
    page.write_text(f"{before}{_BEGIN}\n{table(rows)}\n{_END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
