"""The metrics page: `python -m deploy.generators.metrics_page docs/reference/metrics.md` writes it."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

from detector.policy import VerdictName
from worker.broker.consumer_groups import MAX_GROUPS
from worker.contract.messages import QUEUES, DeadLetterReason, RejectionReason, Stage
from worker.operations import exporter
from worker.relay import state
from worker.telemetry import metrics
from worker.telemetry.metrics import Documented, RetryReason
from worker.telemetry.relay_metrics import LOOPS, RELAY
from worker.web.metrics import ENDPOINTS, STATUSES, WEB

_HEAD = """\
# Metrics

Generated from the code by `make reference`; a test compares the two.

Each worker process serves `/metrics`, `/livez`, `/readyz` and `/startupz` on `DNF_HTTP_PORT` (0, the
default, disables them). With several processes on one host, process number i serves on `DNF_HTTP_PORT` + i:
each has its own metrics, and Prometheus sums them. `dnf-worker exporter` serves the metrics of queues and
streams, once for the fleet; a scrape costs Redis some ten commands, however long the queues are. Each
`dnf-worker relay` serves its own counters and what waits in the database, which is the same at every relay;
each `dnf-worker web` serves those of its requests. GPU metrics come from NVIDIA's DCGM exporter.
"""

_LABELS_HEAD = """\
Checks, buckets, hosts and pods are not labels; Prometheus adds `job` and `instance`. A worker process has
fewer than 500 series with every value of every label; the exporter has fewer than 40, and three for each
consumer group."""


def _listed(values: Iterable[str]) -> str:
    return " ".join(f"`{value}`" for value in values)


_VERDICTS = get_args(VerdictName)
_ONE = "one, of the loaded bundle"

#: The values of each label, and their maximum number.
LABELS = {
    "queue": ("the queues of the contract; a worker uses `other` for any other queue", f"{len(QUEUES)} + 1"),
    "outcome": (
        f"{_listed((*_VERDICTS, 'rejected'))}; of webhooks {_listed(('delivered', 'retried', 'given_up'))}",
        f"{len(_VERDICTS) + 1}",
    ),
    "reason": (
        "the closed list of rejections, of retries, of dead letters, or of disabled endpoints",
        ", ".join(
            f"{len(get_args(reasons))}" for reasons in (RejectionReason, RetryReason, DeadLetterReason)
        ),
    ),
    "stage": (_listed((*get_args(Stage), "publish")), f"{len(get_args(Stage)) + 1}"),
    "serving": ("the verdict of the serving bundle", f"{len(_VERDICTS)}"),
    "shadow": ("the verdict of the shadow bundle", f"{len(_VERDICTS)}"),
    "name": ("the name, version or digest of the serving bundle", _ONE),
    "version": ("the name, version or digest of the serving bundle", _ONE),
    "digest": ("the name, version or digest of the serving bundle", _ONE),
    "device": ("the device of the networks", _ONE),
    "dtype": ("the data type of the networks", _ONE),
    "limit": (_listed(("verdict_stream", "dead_letters", "memory")), "3"),
    "group": ("a consumer group of the verdict stream or of the decisions", f"{MAX_GROUPS}"),
    "origin": (_listed(("uncertain", "audit")), "2"),
    "result": ("what became of an event or a review", "2"),
    "loop": (_listed(LOOPS), f"{len(LOOPS)}"),
    "endpoint": (_listed(ENDPOINTS), f"{len(ENDPOINTS)}"),
    "status": (_listed(STATUSES), f"{len(STATUSES)}"),
}


#: Every metric.
DOCUMENTED = [
    *metrics.DOCUMENTED,
    *exporter.DOCUMENTED,
    *RELAY.documented,
    *state.DOCUMENTED,
    *WEB.documented,
]


def page() -> str:
    """Return the page as Markdown."""
    return "\n".join(
        [
            _HEAD,
            *_table("A worker's `/metrics`", metrics.DOCUMENTED),
            "",
            "The client library adds its `process_` metrics: CPU seconds, resident memory, open files.",
            "",
            *_table("The exporter's `/metrics`", exporter.DOCUMENTED),
            "",
            *_table("A relay's `/metrics`", [*RELAY.documented, *state.DOCUMENTED]),
            "",
            "A relay also serves `dnf_stream_entries_skipped_total` and the `process_` metrics.",
            "",
            *_table("A page's `/metrics`", WEB.documented),
            "",
            "It serves the `process_` metrics too.",
            "",
            *_labels(),
            "",
        ]
    )


def _table(title: str, rows: Iterable[Documented]) -> list[str]:
    lines = [f"## {title}", "", "| metric | type | labels | meaning |", "|---|---|---|---|"]
    for row in rows:
        labels = " ".join(f"`{label}`" for label in row.labels)
        lines.append(f"| `{row.name}` | {row.kind} | {labels} | {row.meaning} |")
    return lines


def _labels() -> list[str]:
    rows = [f"| `{label}` | {meaning} | {most} |" for label, (meaning, most) in LABELS.items()]
    return ["## Labels", "", _LABELS_HEAD, "", "| label | values | at most |", "|---|---|---|", *rows]


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
