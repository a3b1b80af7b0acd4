"""The page of metrics, made from the code: `python -m deploy.generators.metrics_page docs/metrics.md`."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

from detector.policy import VerdictName
from worker.contract.messages import QUEUES, DeadLetterReason, RejectionReason, Stage
from worker.operations.exporter import collector as exporter
from worker.operations.exporter.snapshot import MOST_GROUPS
from worker.telemetry import gpu_metrics, metrics
from worker.telemetry.metrics import Documented, RetryReason

_HEAD = """\
# Metrics

Made from the code by `make metrics`; a test holds it to the code.

Each worker process serves `/metrics`, `/livez`, `/readyz` and `/startupz` on `DNF_HTTP_PORT` (0, the default,
serves nothing). With several processes on one host, process number i serves on `DNF_HTTP_PORT` + i: each has
its own figures, and Prometheus adds them up. `dnf-worker exporter` serves what is seen from outside, once for
the fleet; every scrape costs Redis some ten commands, however long the queues are.
"""

_LABELS_HEAD = """\
No check, bucket, host or pod is a label: Prometheus adds `job` and `instance` itself. A worker process
has fewer than 500 series with every value of every label; the exporter has fewer than 30, and two for each
consumer group."""


def _listed(values: Iterable[str]) -> str:
    return " ".join(f"`{value}`" for value in values)


_VERDICTS = get_args(VerdictName)
_ONE = "one: it tells what is loaded"

#: What each label may be, and how many of it there are at most.
LABELS = {
    "queue": ("the queues of the contract; a worker says `other` of any other one", f"{len(QUEUES)} + 1"),
    "outcome": (_listed((*_VERDICTS, "rejected")), f"{len(_VERDICTS) + 1}"),
    "reason": (
        "a closed list each, of rejections, of retries and of dead letters",
        ", ".join(
            f"{len(get_args(reasons))}" for reasons in (RejectionReason, RetryReason, DeadLetterReason)
        ),
    ),
    "stage": (_listed((*get_args(Stage), "publish")), f"{len(get_args(Stage)) + 1}"),
    "serving": ("the verdict of the serving bundle", f"{len(_VERDICTS)}"),
    "shadow": ("the verdict of the shadow bundle", f"{len(_VERDICTS)}"),
    "name": ("of the serving bundle", _ONE),
    "version": ("of the serving bundle", _ONE),
    "digest": ("of the serving bundle", _ONE),
    "device": ("where it computes", _ONE),
    "dtype": ("in what it computes", _ONE),
    "gpu": ("the driver's number of a GPU", "the host's GPUs"),
    "group": ("a consumer group of the verdict stream", f"{MOST_GROUPS}"),
}


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
            *_labels(),
            "",
        ]
    )


def _table(title: str, rows: Iterable[Documented]) -> list[str]:
    lines = [f"## {title}", "", "| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for row in rows:
        labels = " ".join(f"`{label}`" for label in row.labels)
        lines.append(f"| `{row.name}` | {row.kind} | {labels} | {row.meaning} |")
    return lines


def _labels() -> list[str]:
    rows = [f"| `{label}` | {meaning} | {most} |" for label, (meaning, most) in LABELS.items()]
    return ["## Labels", "", _LABELS_HEAD, "", "| label | values | at most |", "|---|---|---|", *rows]


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
