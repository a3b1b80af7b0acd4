"""The runbook's commands, settings, values, files and links exist."""

import re
import shlex
from typing import Any

import click
import pytest

from detector.cli import main as detector_cli
from tests.deploy.documents import CHART, ROOT, RUNBOOK, headings, read_yaml
from worker.cli import main as worker_cli
from worker.settings import Settings

TEXT = RUNBOOK.read_text(encoding="utf-8")
PROGRAMS: dict[str, click.Command] = {"dnf-worker": worker_cli, "dnf-detector": detector_cli}


#: Placeholders in commands, and their values here.
PLACEHOLDERS = {"CORPUS": str(ROOT), "ENTRY_ID": "1764000000000-0"}


def commands() -> list[str]:
    """Return every call of our two programs in code blocks and inline code."""
    block = re.compile(r"^ *```\n(.*?)^ *```", flags=re.MULTILINE | re.DOTALL)
    blocks = "\n".join(block.findall(TEXT)).replace("\\\n", " ").splitlines()
    inline = re.findall(r"`([^`]+)`", block.sub("", TEXT).replace("\n", " "))
    return [
        match[0].strip()
        for line in (*blocks, *inline)
        if (match := re.search(r"\bdnf-(worker|detector) [^#|]+", line))
    ]


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_every_command_in_the_runbook_exists_with_its_options(command: str) -> None:
    """Click parses it: an unknown command, option or choice, or a missing argument is an error."""
    program, *words = (PLACEHOLDERS.get(word, word) for word in shlex.split(command))
    found: click.Command = PROGRAMS[program]
    context = click.Context(found)
    while isinstance(found, click.Group) and words:
        _, subcommand, words = found.resolve_command(context, words)
        assert subcommand is not None
        found, context = subcommand, click.Context(subcommand, parent=context)
    assert not isinstance(found, click.Group), f"{command} names no command"
    found.make_context(found.name, list(words), parent=context.parent)


def test_the_runbook_has_commands_for_each_of_its_chapters() -> None:
    """Deploy, scale, size, roll out, roll back, drain, redrive and rotate exist."""
    anchors = headings(TEXT)
    assert {
        "deploy", "scale", "size-a-fleet", "roll-out-a-new-bundle", "roll-back", "drain", "redrive",
        "rotate-secrets", "alerts",
    } <= anchors  # fmt: skip
    assert len(set(commands())) > 6


def test_every_setting_in_the_runbook_exists() -> None:
    """Each DNF_ variable is a setting."""
    named = set(re.findall(r"\bDNF_[A-Z0-9_]+[A-Z0-9]\b", TEXT))
    assert {name.removeprefix("DNF_").lower() for name in named} <= Settings.model_fields.keys()


def test_every_value_of_the_chart_in_the_runbook_exists() -> None:
    """Everything after --set, or written as section.value, is in values.yaml."""
    values = read_yaml(CHART / "values.yaml")
    named = set(re.findall(r"--set ([A-Za-z0-9.]+)=", TEXT))
    sections = "|".join(values)
    named |= set(re.findall(rf"`((?:{sections})(?:\.[A-Za-z]+)+)(?:=[^`]*)?`", TEXT))
    assert len(named) > 20
    for name in named:
        found: Any = values
        for part in name.split("."):
            if found == {}:  # settings by name
                assert part in Settings.model_fields, name
                break
            assert part in found, name
            found = found[part]


def test_every_link_and_file_in_the_runbook_exists() -> None:
    """Internal links have a heading, paths a file."""
    anchors = headings(TEXT)
    for anchor in re.findall(r"\]\(#([^)]+)\)", TEXT):
        assert anchor in anchors, anchor
    for path in re.findall(r"\b(?:deploy|docs)/[A-Za-z0-9_./-]*[A-Za-z0-9]", TEXT):
        assert (ROOT / path).exists() or path.startswith("deploy/dnf-"), path
