"""The project's files agree on Pythons and tools."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def test_make_the_workflow_and_the_classifiers_name_the_same_pythons() -> None:
    """Each Python that the package supports is tested, and `make setup` looks for it."""
    named = [name.removeprefix("Programming Language :: Python :: ") for name in PROJECT["classifiers"]]
    pythons = [version for version in named if re.fullmatch(r"3\.\d+", version)]
    assert PROJECT["requires-python"] == f">={pythons[0]}"
    assert WORKFLOW["jobs"]["test"]["strategy"]["matrix"]["python"] == pythons
    assert re.findall(r"python(3\.\d+)", MAKEFILE.partition("VENV")[0].partition("PYTHON ?=")[2]) == pythons


def test_the_workflow_runs_what_ci_runs_with_pinned_actions_and_few_rights() -> None:
    """An action's tag can be moved; a full commit hash cannot."""
    steps = WORKFLOW["jobs"]["test"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["bash .ci/run"]
    for step in steps:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step.get("uses", f"a/b@{'0' * 40}"))
    assert WORKFLOW["permissions"] == {"contents": "read"}


def test_every_hook_runs_a_tool_of_make_lint() -> None:
    """A commit that passes the hooks passes the same tools in `make lint`."""
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0][
        "hooks"
    ]
    assert {hook["entry"].split()[0] for hook in hooks} == {
        f".venv/bin/{tool}" for tool in ("ruff", "mypy", "codespell", "validate-pyproject")
    }
    for hook in hooks:
        assert f"$(BIN)/{Path(hook['entry'].split()[0]).name}" in MAKEFILE
