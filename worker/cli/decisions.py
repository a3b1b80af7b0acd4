"""dnf-worker decisions: what people decided, for a refit, for training, for other systems."""

from pathlib import Path

import click

from detector.terminal import Group, echo, echo_json
from worker.cli.errors import WrongUsageError, current_settings, opened_database, reported_errors


@click.group(cls=Group)
def decisions() -> None:
    """Export the published decisions of moderators."""


@decisions.command(epilog="\b\nExample:\n  dnf-worker decisions export > decisions.jsonl")
def export() -> None:
    """Print every published decision as an event `image.decision.v1`, one a line, oldest first."""
    from worker.reviews.published import published_decisions

    settings = current_settings()
    with opened_database() as database:
        for event in published_decisions(database, settings.review):
            echo_json(event.model_dump(mode="json"))


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
