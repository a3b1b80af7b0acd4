"""dnf-worker: run workers, submit pictures, read verdicts, operate the fleet."""

import click

from detector.terminal import Group
from worker.cli.config import config
from worker.cli.database import database
from worker.cli.dead_letters import dead_letters
from worker.cli.demo import demo
from worker.cli.doctor import doctor
from worker.cli.exporter import exporter
from worker.cli.plan import plan_command
from worker.cli.relay import relay
from worker.cli.run import run
from worker.cli.submit import submit
from worker.cli.verdicts import verdicts
from worker.cli.web import web


class _InOrder(Group):
    """A group that lists its commands in the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(self.commands)


@click.group(
    cls=_InOrder,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nShell completion (zsh; bash and fish likewise):\n"
    '  eval "$(_DNF_WORKER_COMPLETE=zsh_source dnf-worker)"',
)
@click.version_option(package_name="dnf-moderation")
def main() -> None:
    """Tell photographs from AI-generated pictures, from a message queue."""


for _command in (
    demo,
    run,
    submit,
    verdicts,
    dead_letters,
    doctor,
    config,
    plan_command,
    exporter,
    relay,
    web,
    database,
):
    main.add_command(_command)
