"""dnf-worker: run a worker, submit pictures, consume verdicts, see the demonstration."""

import json
import os
import signal
import sys
from pathlib import Path

import click
from pydantic import JsonValue
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.benchmarks.command import bench
from worker.broker.verdict_stream import Event
from worker.cli.dead_letters import dead_letters
from worker.cli.doctor import doctor
from worker.cli.errors import WrongUsageError, plain_errors, settings_in_force
from worker.cli.exporter import exporter
from worker.cli.plan import plan_command
from worker.contract.messages import QUEUES, QueueName, RejectionEvent
from worker.settings import Settings
from worker.telemetry.tracing import exported_traces


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dnf-moderation")
def main() -> None:
    """Tell photographs from AI-generated pictures, from a message queue."""


main.add_command(bench)
main.add_command(dead_letters)
main.add_command(doctor)
main.add_command(exporter)
main.add_command(plan_command)


@main.command()
@click.option("--processes", type=click.IntRange(min=1), help="Worker processes; DNF_PROCESSES otherwise.")
@click.option("--unsupervised", is_flag=True, help="One process, which whoever started it starts again.")
@click.option("--supervised", "descriptor", type=int, hidden=True)
def run(*, processes: int | None, unsupervised: bool, descriptor: int | None) -> None:
    """Start workers: one process for each visible GPU, or one on a CPU, started again when it ends by fault.

    The model is loaded and warmed before the first check is taken. SIGTERM stops in order, a second one at
    once.
    """
    from worker.telemetry.logs import configure_logs

    settings = settings_in_force()
    configure_logs(settings)
    if descriptor is None and not unsupervised:
        from worker.process.supervisor import own_command, supervise

        chosen = settings.model_copy(update={"processes": processes or settings.processes})
        sys.exit(supervise(chosen, own_command()))
    sys.exit(_run_alone(settings, descriptor))


def _run_alone(settings: Settings, descriptor: int | None) -> int:
    from detector.bundle.files import BundleError
    from worker.broker.connection import BrokerRefusedError, refuse_distrust
    from worker.process.tether import Tether
    from worker.telemetry.http import EndpointsUnavailableError

    tether = None if descriptor is None else Tether(descriptor)
    # Celery takes over the signal once it runs; as a container's first process we would ignore it until then.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        refuse_distrust(settings)
        from worker.process.run import run_worker

        return run_worker(settings, on_ready=tether.ready if tether else lambda: None)
    except (BrokerRefusedError, BundleError, EndpointsUnavailableError) as error:
        if tether:
            tether.refused()
        raise click.ClickException(str(error)) from error


@main.command()
@click.argument("pictures", nargs=-1, required=True, metavar="FILE|s3://BUCKET/KEY...")
@click.option("--wait", is_flag=True, help="Wait for the verdicts and show them.")
@click.option("--queue", type=click.Choice(QUEUES), default="image-checks", show_default=True)
@click.option("--metadata", metavar="JSON", help="An object that comes back untouched, at most 4 KiB.")
@click.option("--timeout", "timeout_seconds", type=float, default=120.0, show_default=True, help="Seconds.")
@click.option("--json", "as_json", is_flag=True, help="With --wait: one event a line.")
def submit(
    pictures: tuple[str, ...],
    *,
    wait: bool,
    queue: QueueName,
    metadata: str | None,
    timeout_seconds: float,
    as_json: bool,
) -> None:
    """Enqueue pictures; local files are uploaded first. Prints the check ids, or with --wait the verdicts.

    Exit status: 0 when all were judged, 1 when any was rejected or no verdict came, 2 for wrong usage.
    """
    from worker.client import Client, NoVerdictError

    extra = _metadata(metadata)
    files = [_picture(name) for name in pictures]
    with plain_errors(), exported_traces(), Client(settings_in_force()) as client:
        since = client.position()
        names = {
            client.submit_file(file, queue=queue, metadata=extra)
            if isinstance(file, Path)
            else client.submit(*file, queue=queue, metadata=extra): name
            for file, name in zip(files, pictures, strict=True)
        }
        if not wait:
            click.echo("\n".join(names))
            return
        try:
            events, failure = client.wait_for(*names, timeout_seconds=timeout_seconds, since=since), None
        except NoVerdictError as error:
            events, failure = dict(error.found), error
    _show(
        [(name, events[check_id]) for check_id, name in names.items() if check_id in events], as_json=as_json
    )
    if failure:
        raise click.ClickException(f"{failure}.{' Does a worker run?' if failure.missing else ''}")
    sys.exit(int(any(isinstance(event.envelope, RejectionEvent) for event in events.values())))


@main.command()
@click.option("--follow", is_flag=True, help="Stay and show events as they come, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="One event a line.")
@click.option("--group", metavar="NAME", help="Consume as a member of this group, acknowledging each event.")
def verdicts(*, follow: bool, as_json: bool, group: str | None) -> None:
    """Show the events on the results queue, oldest first."""
    from worker.client import Client

    with plain_errors(), Client(settings_in_force()) as client:
        try:
            if group is None:
                for event in client.events(follow=follow):
                    _line(event, as_json=as_json)
            else:
                for delivered in client.verdicts(group, follow=follow):
                    _line(delivered.event, as_json=as_json)
                    delivered.ack()
        except KeyboardInterrupt:
            return


@main.command()
@click.option("--keep", is_flag=True, help="Leave the services up, to submit your own pictures.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("demo"), show_default=True
)
@click.option("--bundle", default="default", show_default=True, help="The detector.")
def demo(*, keep: bool, out: Path, bundle: str) -> None:
    """Start broker, object store and worker on this machine, judge sample pictures, show the verdicts."""
    from worker.demo.demonstration import run_demo

    sys.exit(run_demo(keep=keep, out=out, bundle=bundle))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="One object.")
def config(*, as_json: bool) -> None:
    """Show the settings in force, secrets masked."""
    shown = settings_in_force().shown()
    if as_json:
        click.echo(json.dumps(shown, indent=2))
        return
    table = Table("Variable", "Value", "Meaning")
    for name, value in shown.items():
        table.add_row(f"DNF_{name.upper()}", escape(value), Settings.model_fields[name].description)
    Console().print(table)


def _metadata(text: str | None) -> dict[str, JsonValue]:
    if text is None:
        return {}
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise WrongUsageError(f"--metadata is no JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise WrongUsageError("--metadata must be a JSON object")
    return parsed


def _picture(name: str) -> Path | tuple[str, str]:
    if name.startswith("s3://"):
        bucket, _, key = name.removeprefix("s3://").partition("/")
        if not bucket or not key:
            raise WrongUsageError(f"{name}: expected s3://BUCKET/KEY")
        return bucket, key
    if not Path(name).is_file():
        raise WrongUsageError(f"{name}: there is no such file")
    if not os.access(name, os.R_OK):
        raise WrongUsageError(f"{name}: the file may not be read")
    return Path(name)


def _show(events: list[tuple[str, Event]], *, as_json: bool) -> None:
    if as_json:
        for _, event in events:
            click.echo(event.raw)
        return
    table = Table("Picture", "Verdict", "Score", "Milliseconds")
    for name, event in events:
        data = event.envelope.data
        total = f"{data.durations_ms['total']:.0f}"
        if isinstance(event.envelope, RejectionEvent):
            table.add_row(escape(name), f"rejected: {event.envelope.data.reason}", "", total)
        else:
            table.add_row(
                escape(name), event.envelope.data.verdict, f"{event.envelope.data.score:.3f}", total
            )
    Console().print(table)


def _line(event: Event, *, as_json: bool) -> None:
    if as_json:
        click.echo(event.raw)
        return
    said = (
        f"rejected: {event.envelope.data.reason}"
        if isinstance(event.envelope, RejectionEvent)
        else f"{event.envelope.data.verdict:<9} {event.envelope.data.score:.3f}"
    )
    click.echo(f"{event.envelope.time:%Y-%m-%d %H:%M:%S}  {said:<28}  {event.envelope.subject}")


if __name__ == "__main__":
    main()
