"""dnf-worker: run workers, submit pictures, read verdicts, operate the fleet."""

import click

from detector.terminal import Group, LazyCommand

_COMMANDS = {
    "demo": LazyCommand(
        "worker.cli.demo",
        "demo",
        "Start broker, object store and worker on this machine, judge sample pictures",
    ),
    "run": LazyCommand(
        "worker.cli.run", "run", "Start workers: one process for each visible GPU, or one on a CPU"
    ),
    "submit": LazyCommand("worker.cli.submit", "submit", "Enqueue pictures; local files are uploaded first"),
    "verdicts": LazyCommand(
        "worker.cli.verdicts", "verdicts", "Show the events on the verdict stream, oldest first"
    ),
    "dead-letters": LazyCommand(
        "worker.cli.dead_letters",
        "dead_letters",
        "Inspect, redrive or drop the messages that could not be processed",
    ),
    "doctor": LazyCommand(
        "worker.cli.doctor", "doctor", "Diagnose settings, broker, object store and detector"
    ),
    "config": LazyCommand("worker.cli.config", "config", "Show the settings in force, secrets masked"),
    "plan": LazyCommand(
        "worker.cli.plan", "plan_command", "Size a fleet: workers, Redis memory, S3 reads and cost"
    ),
    "exporter": LazyCommand(
        "worker.cli.exporter", "exporter", "Serve /metrics of queues, streams and fleet on DNF_HTTP_PORT"
    ),
    "relay": LazyCommand(
        "worker.cli.relay",
        "relay",
        "Carry verdicts to the reviews in PostgreSQL, and people's decisions back",
    ),
    "web": LazyCommand(
        "worker.cli.web", "web", "Serve the page for moderators and the HTTP API on DNF_WEB_PORT"
    ),
    "database": LazyCommand("worker.cli.database", "database", "Migrate the schema, verify the audit"),
    "tokens": LazyCommand(
        "worker.cli.tokens", "tokens", "Make, list and revoke the tokens of machines that call the HTTP API"
    ),
    "decisions": LazyCommand(
        "worker.cli.decisions", "decisions", "Show and export the published decisions of moderators"
    ),
}


@click.group(
    cls=Group,
    lazy=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nShell completion (zsh; bash and fish likewise):\n"
    '  eval "$(_DNF_WORKER_COMPLETE=zsh_source dnf-worker)"',
)
@click.version_option(package_name="dnf-moderation")
def main() -> None:
    """Tell photographs from AI-generated pictures, from a message queue."""
