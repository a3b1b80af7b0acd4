"""Names in the documentation exist: commands, settings, metrics, files, modules, alerts and make targets."""

import ast
import importlib.util
import re
import shlex
from pathlib import Path

import click
import pytest

from deploy.generators import settings_page
from deploy.generators.metrics_page import DOCUMENTED
from detector.cli import main as detector_cli
from tests.deploy.documents import alerts
from tests.docs.pages import CURRENT, PAGES, ROOT, blocks, code, name, read
from worker.cli import main as worker_cli
from worker.settings import Settings

PROGRAMS: dict[str, click.Command] = {"dnf-worker": worker_cli, "dnf-detector": detector_cli}

#: Variables of compose's .env file and of the tests.
OTHER_VARIABLES = {"GRAFANA_PASSWORD", "REDIS_MAXMEMORY", "TEST_PATIENCE", "CHAOS_SCALE", "CHAOS_REPORT"}
#: What a reader fills in, and a value that stands for it.
PLACEHOLDERS = {"CORPUS": str(ROOT), "ENTRY_ID": "1764000000000-0", "BUNDLE": "default", "NAME": "name"}


def commands() -> list[tuple[str, str]]:
    """Return (page, command) for each complete use of the two programs."""
    return sorted(
        {
            (name(page), match[0].strip())
            for page in CURRENT
            for line in code(page)
            if (match := re.search(r"\bdnf-(worker|detector) [^#|;)]+", line))
            and not re.search(r"\.\.\.|\[|\$", match[0])
        }
    )


@pytest.mark.parametrize(("page", "command"), commands())
def test_every_command_exists_with_its_options(page: str, command: str) -> None:
    """Click itself parses the words: an unknown command, option, choice or missing argument is an error."""
    program, *words = (PLACEHOLDERS.get(word, word) for word in shlex.split(command))
    found: click.Command = PROGRAMS[program]
    context = click.Context(found)
    while isinstance(found, click.Group) and words:
        _, subcommand, words = found.resolve_command(context, words)
        assert subcommand is not None, page
        found, context = subcommand, click.Context(subcommand, parent=context)
    if words:  # a bare name only mentions the command
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(click.Path, "convert", lambda _self, value, _param, _ctx: Path(value))
            found.make_context(found.name, list(words), parent=context.parent)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_test_in_a_page_exists(page: Path) -> None:
    """Pages that name a test as evidence name one that runs."""
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for found in re.findall(r"`(test_\w+)`", read(page)):
        assert f"def {found}(" in tests, found


def test_many_commands_are_found() -> None:
    """The search for commands did not silently stop to find any."""
    assert len(commands()) > 30


@pytest.mark.parametrize("page", CURRENT, ids=name)
def test_every_name_in_a_page_exists(page: Path) -> None:
    """Settings, metrics, alerts, make targets, modules and files of the repository."""
    text = read(page)
    settings = {found.lower() for found in re.findall(r"\bDNF_([A-Z0-9_]+[A-Z0-9])\b", text)}
    others = {found.lower() for found in OTHER_VARIABLES} | {"worker_complete", "detector_complete"}
    assert settings - others <= Settings.model_fields.keys()
    metrics = set(re.findall(r"\bdnf_[a-z0-9_]+[a-z0-9]\b", text)) - {"dnf_moderation"}
    assert metrics <= {metric.name for metric in DOCUMENTED}
    assert set(re.findall(r"\bDnf[A-Z]\w+", text)) <= {rule["alert"] for rule in alerts()}
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for line in code(page):
        if match := re.match(r"make ([a-z-]+)", line):
            assert match[1] in targets
        for path in re.findall(r"(?<![\w./-])(?:worker|detector|deploy|tests|docs)/[\w./-]*[\w]", line):
            exists = (ROOT / path).exists() or path.startswith("deploy/dnf-")  # kubectl's deploy/NAME
            assert exists, f"{name(page)}: {path}"
        for module in re.findall(r"python -m ((?:worker|detector|deploy|tests)[\w.]*)", line):
            assert importlib.util.find_spec(module), f"{name(page)}: {module}"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name)
def test_the_python_examples_import_what_exists(page: Path) -> None:
    """Each example parses, and each name that it imports from the project is there."""
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if (
                isinstance(node, ast.ImportFrom)
                and node.module
                and node.module.startswith(("worker", "detector"))
            ):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{name(page)}: {node.module}.{alias.name}"


def test_the_settings_page_is_what_the_code_says() -> None:
    """`make reference` writes it."""
    assert read(ROOT / "docs" / "reference" / "settings.md") == settings_page.page()
