"""The page of metrics, made from the code: `python -m worker.metrics_page docs/metrics.md`."""

import sys
from collections.abc import Iterable
from pathlib import Path

from worker import exporter, gpu_metrics, metrics
from worker.metrics import Documented

_HEAD = """\
# Metrics

Made from the code by `make metrics`; a test holds it to the code.

Each worker process serves `/metrics`, `/livez`, `/readyz` and `/startupz` on `DNF_HTTP_PORT` (0, the default,
serves nothing). With several processes on one host, process number i serves on `DNF_HTTP_PORT` + i: each has
its own figures, and Prometheus adds them up. `dnf-worker exporter` serves what is seen from outside, once for
the fleet; every scrape costs Redis some ten commands, however long the queues are.
"""


def page() -> str:
    """Return the page as Markdown."""
    return "\n".join(
        [
            _HEAD,
            *_table("A worker's `/metrics`", [*metrics.DOCUMENTED, *gpu_metrics.DOCUMENTED]),
            "",
            "With the client library's own `process_` figures: CPU seconds, resident memory, open files.",
            "",
            *_table("The exporter's `/metrics`", exporter.DOCUMENTED),
            "",
        ]
    )


def _table(title: str, rows: Iterable[Documented]) -> list[str]:
    lines = [f"## {title}", "", "| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for row in rows:
        labels = " ".join(f"`{label}`" for label in row.labels)
        lines.append(f"| `{row.name}` | {row.kind} | {labels} | {row.meaning} |")
    return lines


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
