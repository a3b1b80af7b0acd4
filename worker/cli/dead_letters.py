"""dnf-worker dead-letters: look at what could not be carried out, put it back, or drop it."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, get_args

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from worker.broker.dead_letters import DeadLetters, RedriveRefusedError, StoredDeadLetter
from worker.cli.errors import plain_errors, settings_in_force
from worker.contract.messages import DeadLetterReason

_ENTRY_ID = r"\d{1,20}-\d{1,20}"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class _Age(click.ParamType):  # type: ignore[type-arg]
    """A time such as 90s, 15m, 2h or 7d; a bare number is seconds."""

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
            self.fail(f"{value!r} is no age: expected a number with s, m, h or d", param, ctx)
        return seconds


class _EntryId(click.ParamType):  # type: ignore[type-arg]
    """The id of a letter, as `list` shows it."""

    name = "ID"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the id."""
        if not re.fullmatch(_ENTRY_ID, value):
            self.fail(f"{value!r} is no letter's id, such as 1764000000000-0", param, ctx)
        return str(value)


def _filters(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="One object a line."),
        click.option("--newer-than", type=_Age(), help="Only letters younger than this: 90s, 15m, 2h, 7d."),
        click.option("--older-than", type=_Age(), help="Only letters older than this."),
        click.option(
            "--reason",
            "reasons",
            type=click.Choice(get_args(DeadLetterReason)),
            multiple=True,
            help="Only letters of this reason; may be given several times.",
        ),
    ):
        command = option(command)
    return command


def _chosen(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option("--all", "everything", is_flag=True, help="Every letter.")(_filters(command))
    return click.argument("entry_ids", nargs=-1, type=_EntryId(), metavar="[ID...]")(command)


@click.group("dead-letters")
def dead_letters() -> None:
    """Look at the messages that could not be carried out; put them back, or drop them."""


@dead_letters.command("list")
@_filters
def list_letters(
    *, reasons: tuple[str, ...], older_than: float | None, newer_than: float | None, as_json: bool
) -> None:
    """List the letters, oldest first."""
    table = Table("Id", "Age", "Reason", "Deliveries", "Check", "Sentence")
    with _store() as store:
        found = store.read(
            reasons=frozenset(reasons), older_than_seconds=older_than, newer_than_seconds=newer_than
        )
        for stored in found:
            if as_json:
                click.echo(_line(stored))
            elif (dead_letter := stored.dead_letter) is None:
                table.add_row(stored.entry_id, _age(stored), "", "", "", "no dead letter at all")
            else:
                table.add_row(
                    stored.entry_id,
                    _age(stored),
                    dead_letter.reason,
                    str(dead_letter.attempts),
                    escape(dead_letter.check_id or ""),
                    escape(dead_letter.detail),
                )
    if not as_json:
        Console().print(table if table.row_count else "No dead letters.")


@dead_letters.command()
@click.argument("entry_id", type=_EntryId())
@click.option("--json", "as_json", is_flag=True, help="One object.")
def show(*, entry_id: str, as_json: bool) -> None:
    """Show one letter whole, with its message."""
    with _store() as store:
        stored = store.get(entry_id)
    if stored is None:
        raise click.ClickException(f"There is no dead letter {entry_id}.")
    if as_json:
        click.echo(_line(stored))
    elif stored.dead_letter is None:
        click.echo(f"{entry_id}: no dead letter at all")
    else:
        for name, value in stored.dead_letter.model_dump(mode="json").items():
            click.echo(f"{name:<11} {'' if value is None else value}")


@dead_letters.command()
@_chosen
def redrive(
    *,
    entry_ids: tuple[str, ...],
    everything: bool,
    reasons: tuple[str, ...],
    older_than: float | None,
    newer_than: float | None,
    as_json: bool,
) -> None:
    """Put messages back on their queues, their deliveries forgotten. Each is put back once.

    Exit status: 0 when all were put back, 1 when any was not.
    """
    _refuse_nothing_chosen(entry_ids, everything, reasons, older_than, newer_than)
    failed = 0
    with _store() as store:
        for entry_id, stored in _each(store, entry_ids, reasons, older_than, newer_than):
            try:
                if stored is None:
                    raise RedriveRefusedError("gone", f"There is no dead letter {entry_id}.")  # noqa: TRY301
                store.redrive(stored)
            except RedriveRefusedError as refused:
                failed += 1
                _say(entry_id, "not_put_back", refused.reason, str(refused), as_json=as_json)
            else:
                _say(entry_id, "put_back", as_json=as_json)
    if failed:
        raise click.exceptions.Exit(1)


@dead_letters.command()
@_chosen
def drop(
    *,
    entry_ids: tuple[str, ...],
    everything: bool,
    reasons: tuple[str, ...],
    older_than: float | None,
    newer_than: float | None,
    as_json: bool,
) -> None:
    """Delete letters and their messages for good.

    Exit status: 0 when all were dropped, 1 when any was gone.
    """
    _refuse_nothing_chosen(entry_ids, everything, reasons, older_than, newer_than)
    failed = 0
    with _store() as store:
        for entry_id, stored in _each(store, entry_ids, reasons, older_than, newer_than):
            if stored and store.drop(stored):
                _say(entry_id, "dropped", as_json=as_json)
            else:
                failed += 1
                _say(entry_id, "not_dropped", "gone", f"There is no dead letter {entry_id}.", as_json=as_json)
    if failed:
        raise click.exceptions.Exit(1)


@contextmanager
def _store() -> Iterator[DeadLetters]:
    """Open the stream that the settings name."""
    with plain_errors(), closing(DeadLetters.connect(settings_in_force())) as store:
        yield store


def _each(
    store: DeadLetters,
    entry_ids: tuple[str, ...],
    reasons: tuple[str, ...],
    older_than: float | None,
    newer_than: float | None,
) -> list[tuple[str, StoredDeadLetter | None]]:
    """Return the letters that were named, or that pass the filters; None for one that is not there."""
    if entry_ids:
        return [(entry_id, store.get(entry_id)) for entry_id in dict.fromkeys(entry_ids)]
    found = store.read(
        reasons=frozenset(reasons), older_than_seconds=older_than, newer_than_seconds=newer_than
    )
    return [(stored.entry_id, stored) for stored in found]


def _refuse_nothing_chosen(
    entry_ids: tuple[str, ...], everything: bool, reasons: tuple[str, ...], *ages: float | None
) -> None:
    filtered = bool(reasons) or any(age is not None for age in ages)
    if entry_ids and (filtered or everything):
        raise click.UsageError("Name letters by their ids or by filters, not both.")
    if not entry_ids and not filtered and not everything:
        raise click.UsageError(
            "Name letters by their ids, by --reason, --older-than, --newer-than, or --all."
        )


def _say(entry_id: str, outcome: str, reason: str | None = None, detail: str = "", *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"id": entry_id, "outcome": outcome, "reason": reason}))
    else:
        click.echo(f"{entry_id}  {outcome.replace('_', ' ')}" + (f": {detail}" if detail else ""))


def _line(stored: StoredDeadLetter) -> str:
    dead_letter = stored.dead_letter.model_dump(mode="json") if stored.dead_letter else None
    return json.dumps(
        {"id": stored.entry_id, "age_seconds": round(stored.age_seconds, 1), "dead_letter": dead_letter}
    )


def _age(stored: StoredDeadLetter) -> str:
    seconds = max(0.0, stored.age_seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
