"""dnf-worker decisions: what people decided, for a refit, for training, for other systems."""

import json
from pathlib import Path

import click

from detector.terminal import Group, echo, echo_json, echo_record
from worker.broker.decision_stream import Decided, DecisionStream
from worker.cli.errors import WrongUsageError, current_settings, opened_database, reported_errors


@click.group(cls=Group)
def decisions() -> None:
    """Show and export the published decisions of moderators."""


@decisions.command(epilog="\b\nExample:\n  dnf-worker decisions show --follow --group platform --json")
@click.option("--follow", is_flag=True, help="Keep running and show decisions as they come, until Ctrl-C.")
@click.option("--group", metavar="NAME", help="Consume as a member of this group and acknowledge each one.")
@click.option("--json", "as_json", is_flag=True, help="Print one event per line.")
def show(*, follow: bool, group: str | None, as_json: bool) -> None:
    """Show the decisions on the decision stream, oldest first.

    In a pipe each one is a line: time, outcome, basis, check id, revision, and object, separated by tabs.
    """
    from worker.client import Client

    settings = current_settings()
    with reported_errors(), Client(settings) as client:
        try:
            if group is not None:
                for delivered in client.decisions(group, follow=follow):
                    _show(delivered.event, as_json=as_json)
                    delivered.ack()
                return
            for event in DecisionStream.connect(settings).tail(block_seconds=1.0 if follow else 0.001):
                if event is not None:
                    _show(event, as_json=as_json)
                elif not follow:
                    return
        except KeyboardInterrupt:
            return


@decisions.command(epilog="\b\nExample:\n  dnf-worker decisions export decisions.jsonl")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path), required=False)
def export(*, file: Path | None) -> None:
    """Write every published decision as an event `image.decision.v1`, one a line, oldest first.

    Without FILE to standard output.
    """
    from worker.reviews.published import published_decisions

    settings = current_settings()
    with opened_database() as database:
        events = published_decisions(database, settings.review)
        if file is None:
            for event in events:
                echo_json(event.model_dump(mode="json"))
        else:
            with file.open("w", encoding="utf-8") as lines:
                lines.writelines(f"{event.model_dump_json()}\n" for event in events)


@decisions.command(
    epilog="\b\nExample:\n  dnf-worker decisions corpus mine --uploader user"
    "\n  dnf-detector train all mine --out bundle"
)
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--uploader",
    metavar="KEY",
    help="Key of the metadata that names the uploader: one uploader's pictures stay in one split.",
)
@click.option(
    "--basis",
    "bases",
    multiple=True,
    type=click.Choice(["opinion", "source_found", "uploader_said", "credentials"]),
    help="Only decisions that rest on this; can be repeated.",
)
def corpus(folder: Path, *, uploader: str | None, bases: tuple[str, ...]) -> None:
    """Write the decided pictures and a manifest to a new FOLDER, as `dnf-detector train` reads it.

    Pictures whose object is gone or has changed are left out and counted.
    """
    from worker.operations.corpus import CorpusFolderError, write_corpus

    settings = current_settings()
    with reported_errors(), opened_database() as database:
        try:
            written = write_corpus(settings, database, folder, uploader=uploader, bases=frozenset(bases))
        except CorpusFolderError as error:
            raise WrongUsageError(str(error)) from error
    echo(f"{folder}: {written.real} photographs, {written.generated} generated pictures")
    if written.left_out:
        echo("left out: " + ", ".join(f"{count} {reason}" for reason, count in written.left_out.items()))


def _show(event: Decided, *, as_json: bool) -> None:
    if as_json:
        echo_json(json.loads(event.raw))
        return
    data = event.envelope.data
    echo_record(
        [
            f"{event.envelope.time:%Y-%m-%dT%H:%M:%SZ}",
            f"{data.outcome:<11}",
            f"{data.basis:<13}",
            data.check_id,
        ],
        [f"revision {data.revision}", event.envelope.subject],
    )
