"""dnf-worker dead-letters: inspect, redrive or drop the messages that could not be processed."""

import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, get_args

import click

from detector.terminal import echo, echo_json, echo_record
from worker.broker.connection import connect
from worker.broker.dead_letters import DeadLetters, RedriveRefusedError, StoredDeadLetter
from worker.cli.errors import current_settings, reported_errors
from worker.contract.messages import DeadLetterReason

_ENTRY_ID = r"\d{1,20}-\d{1,20}"
# For each command to the broker.
_LIMIT_SECONDS = 20.0
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class _Age(click.ParamType):  # type: ignore[type-arg]
    """A duration such as 90s, 15m, 2h or 7d; a bare number is in seconds."""

    name = "AGE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds."""
        if isinstance(value, float):
            return value
        number, unit = (value[:-1], value[-1]) if value[-1:] in _UNITS else (value, "s")
        try:
            seconds = float(number) * _UNITS[unit]
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds < float("inf"):
            self.fail(f"{value!r} is not an age: expected a number with s, m, h or d", param, ctx)
        return seconds


class _EntryId(click.ParamType):  # type: ignore[type-arg]
    """The id of a dead letter, as `list` shows it."""

    name = "ID"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the id."""
        if not re.fullmatch(_ENTRY_ID, value):
            self.fail(f"{value!r} is not the id of a dead letter, such as 1764000000000-0", param, ctx)
        return str(value)


def _filters(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line."),
        click.option("--older-than", type=_Age(), help="Only older dead letters."),
        click.option("--newer-than", type=_Age(), help="Only newer dead letters: 90s, 15m, 2h, 7d."),
        click.option(
            "--reason",
            "reasons",
            type=click.Choice(get_args(DeadLetterReason)),
            multiple=True,
            help="Only dead letters with this reason; repeatable.",
        ),
    ):
        command = option(command)
    return command


def _selection(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option("--all", "everything", is_flag=True, help="Every dead letter.")(_filters(command))
    return click.argument("entry_ids", nargs=-1, type=_EntryId(), metavar="[ID...]")(command)


@click.group("dead-letters", epilog="\b\nExample:\n  dnf-worker dead-letters list --newer-than 2h")
def dead_letters() -> None:
    """Inspect, redrive or drop the messages that could not be processed."""


@dead_letters.command("list", epilog="\b\nExample:\n  dnf-worker dead-letters list --reason model_failed")
@_filters
def list_dead_letters(*, as_json: bool, **filters: Any) -> None:
    """List dead letters, oldest first.

    In a pipe each one is a line: id, time, reason, attempts, check id and detail, separated by tabs.
    """
    found = False
    with _stream() as stream:
        for stored in _filtered(stream, **filters):
            found = True
            if as_json:
                echo_json(_json(stored))
            elif (dead_letter := stored.dead_letter) is None:
                echo_record([stored.entry_id, "", "unreadable entry", ""], ["", ""])
            else:
                echo_record(
                    [
                        stored.entry_id,
                        f"{dead_letter.time:%Y-%m-%dT%H:%M:%SZ}",
                        dead_letter.reason,
                        str(dead_letter.attempts),
                    ],
                    [dead_letter.check_id or "", dead_letter.detail],
                )
    if not found and not as_json:
        echo("No dead letters.", err=True)


@dead_letters.command(epilog="\b\nExample:\n  dnf-worker dead-letters show 1764000000000-0")
@click.argument("entry_id", type=_EntryId())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(*, entry_id: str, as_json: bool) -> None:
    """Show one dead letter completely, with its message."""
    with _stream() as stream:
        stored = stream.get(entry_id)
    if stored is None:
        raise click.ClickException(f"There is no dead letter {entry_id}.")
    if as_json:
        echo_json(_json(stored))
    elif stored.dead_letter is None:
        echo(f"{entry_id}: unreadable entry")
    else:
        for name, value in stored.dead_letter.model_dump(mode="json").items():
            echo(f"{name:<11} {'' if value is None else value}")


@dead_letters.command(
    epilog="\b\nExample:\n  dnf-worker dead-letters redrive --reason storage_unavailable --newer-than 2h"
)
@_selection
def redrive(*, as_json: bool, **selection: Any) -> None:
    """Requeue messages with their attempt counts reset. Each dead letter is redriven once.

    Exit status: 0 when all were redriven, 1 when one was not.
    """
    failed = 0
    with _stream() as stream:
        for entry_id, stored in _selected(stream, **selection):
            try:
                if stored is None:
                    raise RedriveRefusedError("gone", f"There is no dead letter {entry_id}.")  # noqa: TRY301
                stream.redrive(stored)
            except RedriveRefusedError as refused:
                failed += 1
                _report(entry_id, "not_redriven", refused.reason, str(refused), as_json=as_json)
            else:
                _report(entry_id, "redriven", as_json=as_json)
    if failed:
        raise click.exceptions.Exit(1)


@dead_letters.command(
    epilog="\b\nExample:\n  dnf-worker dead-letters drop --reason malformed_message --older-than 7d"
)
@_selection
def drop(*, as_json: bool, **selection: Any) -> None:
    """Delete dead letters and their messages permanently.

    Exit status: 0 when all were dropped, 1 when one no longer existed.
    """
    failed = 0
    with _stream() as stream:
        for entry_id, stored in _selected(stream, **selection):
            if stored and stream.drop(stored):
                _report(entry_id, "dropped", as_json=as_json)
            else:
                failed += 1
                detail = f"There is no dead letter {entry_id}."
                _report(entry_id, "not_dropped", "gone", detail, as_json=as_json)
    if failed:
        raise click.exceptions.Exit(1)


@contextmanager
def _stream() -> Iterator[DeadLetters]:
    """Open the stream that the settings name."""
    with reported_errors():
        settings = current_settings()
        client = connect(settings.broker, within_seconds=_LIMIT_SECONDS)
        with closing(DeadLetters.connect(settings, client=client)) as stream:
            yield stream


def _filtered(
    stream: DeadLetters, *, reasons: tuple[str, ...], newer_than: float | None, older_than: float | None
) -> Iterator[StoredDeadLetter]:
    return stream.read(
        reasons=frozenset(reasons), newer_than_seconds=newer_than, older_than_seconds=older_than
    )


def _selected(
    stream: DeadLetters, *, entry_ids: tuple[str, ...], everything: bool, **filters: Any
) -> list[tuple[str, StoredDeadLetter | None]]:
    """Return the named dead letters, None for a missing one, or those that pass the filters.

    Raises click.UsageError for no selection, and for ids together with filters.
    """
    filtered = everything or any(value not in {None, ()} for value in filters.values())
    if entry_ids and filtered:
        raise click.UsageError("Select dead letters by their ids or by filters, not both.")
    if not entry_ids and not filtered:
        raise click.UsageError(
            "Select dead letters by their ids, by --reason, --newer-than, --older-than, or --all."
        )
    if entry_ids:
        return [(entry_id, stream.get(entry_id)) for entry_id in dict.fromkeys(entry_ids)]
    return [(stored.entry_id, stored) for stored in _filtered(stream, **filters)]


def _report(
    entry_id: str, outcome: str, reason: str | None = None, detail: str = "", *, as_json: bool
) -> None:
    if as_json:
        echo_json({"id": entry_id, "outcome": outcome, "reason": reason})
    else:
        echo(f"{entry_id}  {outcome.replace('_', ' ')}" + (f": {detail}" if detail else ""))


def _json(stored: StoredDeadLetter) -> dict[str, object]:
    dead_letter = stored.dead_letter.model_dump(mode="json") if stored.dead_letter else None
    return {"id": stored.entry_id, "age_seconds": round(stored.age_seconds, 1), "dead_letter": dead_letter}
