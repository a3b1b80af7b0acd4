"""dnf-worker submit: enqueue pictures."""

import json
import os
import sys
from pathlib import Path

import click
from pydantic import JsonValue

from detector.terminal import echo, echo_json, echo_record
from worker.broker.verdict_stream import Event
from worker.cli.errors import WrongUsageError, current_settings, reported_errors
from worker.cli.verdicts import outcome
from worker.contract.messages import QUEUES, QueueName, RejectionEvent
from worker.telemetry.tracing import exported_traces


@click.command(epilog="\b\nExample:\n  dnf-worker submit --wait photo.jpg s3://uploads/2026/11/picture.png")
@click.argument("pictures", nargs=-1, required=True, metavar="FILE|s3://BUCKET/KEY...")
@click.option("--queue", type=click.Choice(QUEUES), default="image-checks", show_default=True)
@click.option("--metadata", metavar="JSON", help="Object that is returned unchanged, at most 4 KiB.")
@click.option("--wait", is_flag=True, help="Wait for the verdicts and show them.")
@click.option(
    "--timeout",
    "timeout_seconds",
    type=float,
    default=120.0,
    show_default=True,
    help="With --wait: seconds to wait.",
)
@click.option("--json", "as_json", is_flag=True, help="With --wait: print one event per line.")
def submit(
    pictures: tuple[str, ...],
    *,
    queue: QueueName,
    metadata: str | None,
    wait: bool,
    timeout_seconds: float,
    as_json: bool,
) -> None:
    """Enqueue pictures; local files are uploaded first. Prints the check ids, or with --wait the verdicts.

    In a pipe each verdict is a line: outcome, score, time, check id, picture and reason of a rejection,
    separated by tabs.

    Exit status: 0 when every picture has a verdict, 1 when one was rejected or has none, 2 for wrong usage.
    """
    from worker.client import Client, NoVerdictError

    extra = _metadata(metadata)
    sources = [_source(name) for name in pictures]
    with reported_errors(), exported_traces(), Client(current_settings()) as client:
        names = {
            client.submit_file(source, queue=queue, metadata=extra)
            if isinstance(source, Path)
            else client.submit(*source, queue=queue, metadata=extra): name
            for source, name in zip(sources, pictures, strict=True)
        }
        if not wait:
            for check_id in names:
                echo(check_id)
            return
        try:
            events, failure = client.wait_for(*names, timeout_seconds=timeout_seconds), None
        except NoVerdictError as error:
            events, failure = dict(error.found), error
    _show(
        [(name, events[check_id]) for check_id, name in names.items() if check_id in events], as_json=as_json
    )
    if failure:
        # A check that a worker retried was seen by one.
        unseen = failure.missing - failure.retries.keys()
        raise click.ClickException(f"{failure}.{' Is a worker running?' if unseen else ''}")
    sys.exit(int(any(isinstance(event.envelope, RejectionEvent) for event in events.values())))


def _metadata(text: str | None) -> dict[str, JsonValue]:
    if text is None:
        return {}
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise WrongUsageError(f"--metadata is not JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise WrongUsageError("--metadata must be a JSON object")
    return parsed


def _source(name: str) -> Path | tuple[str, str]:
    """Return the file, or the bucket and key, that an argument names."""
    if name.startswith("s3://"):
        bucket, _, key = name.removeprefix("s3://").partition("/")
        if not bucket or not key:
            raise WrongUsageError(f"{name}: expected s3://BUCKET/KEY")
        return bucket, key
    if not Path(name).is_file():
        raise WrongUsageError(f"{name}: no such file")
    if not os.access(name, os.R_OK):
        raise WrongUsageError(f"{name}: the file is not readable")
    return Path(name)


def _show(events: list[tuple[str, Event]], *, as_json: bool) -> None:
    if as_json:
        for _, event in events:
            echo_json(json.loads(event.raw))
        return
    for name, event in events:
        result, score, reason = outcome(event)
        milliseconds = f"{event.envelope.data.durations_ms['total']:.0f} ms"
        echo_record([f"{result:<9}", f"{score:<5}", milliseconds, event.check_id], [name, reason])
