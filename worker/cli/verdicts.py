"""dnf-worker verdicts: the events on the verdict stream."""

import json

import click

from detector.terminal import echo_json, echo_record
from worker.broker.verdict_stream import Event
from worker.cli.errors import current_settings, reported_errors
from worker.contract.messages import Rejection


@click.command(epilog="\b\nExample:\n  dnf-worker verdicts --follow --group moderation --json")
@click.option("--follow", is_flag=True, help="Keep running and show events as they come, until Ctrl-C.")
@click.option("--group", metavar="NAME", help="Consume as a member of this group and acknowledge each event.")
@click.option("--json", "as_json", is_flag=True, help="Print one event per line.")
def verdicts(*, follow: bool, group: str | None, as_json: bool) -> None:
    """Show the events on the verdict stream, oldest first.

    In a pipe each one is a line: time, outcome, score, check id, reason of a rejection, and object, separated
    by tabs.
    """
    from worker.client import Client

    with reported_errors(), Client(current_settings()) as client:
        try:
            if group is None:
                for event in client.events(follow=follow):
                    _show(event, as_json=as_json)
            else:
                for delivered in client.verdicts(group, follow=follow):
                    _show(delivered.event, as_json=as_json)
                    delivered.ack()
        except KeyboardInterrupt:
            return


def _show(event: Event, *, as_json: bool) -> None:
    if as_json:
        echo_json(json.loads(event.raw))
        return
    result, score, reason = outcome(event)
    echo_record(
        [f"{event.envelope.time:%Y-%m-%dT%H:%M:%SZ}", f"{result:<9}", f"{score:<5}", event.check_id],
        [reason, event.envelope.subject],
    )


def outcome(event: Event) -> tuple[str, str, str]:
    """Return the verdict or `rejected`, the score, and the reason of a rejection."""
    data = event.envelope.data
    if isinstance(data, Rejection):
        return "rejected", "", data.reason
    return data.verdict, f"{data.score:.3f}", ""
