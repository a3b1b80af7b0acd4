"""Programs that use the packages are type-checked against their annotations (PEP 561)."""

import os
import subprocess
import sys

import pytest

CORRECT = """
from worker.client import Client
from worker.contract.messages import Rejection

with Client() as client:
    check_id: str = client.submit("uploads", "picture.jpg", metadata={"user": "u-17"})
    event = client.wait_for(check_id, timeout_seconds=60)[check_id]
    data = event.envelope.data
    answer: str = data.reason if isinstance(data, Rejection) else data.verdict
"""

#: What is wrong in each program: (correct text, wrong text, code of mypy's error).
WRONG = {
    "argument": ("timeout_seconds=60", 'timeout_seconds="60"', "arg-type"),
    "result": ("check_id: str", "check_id: int", "assignment"),
    "forgotten_rejection": ("data.reason if isinstance(data, Rejection) else ", "", "union-attr"),
}


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Check every program in one run of strict mypy, outside of the repository as a user's project is."""
    folder = tmp_path_factory.mktemp("programs")
    (folder / "correct.py").write_text(CORRECT, encoding="utf-8")
    for name, (correct, wrong, _) in WRONG.items():
        (folder / f"{name}.py").write_text(CORRECT.replace(correct, wrong), encoding="utf-8")
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-error-summary", *folder.iterdir()],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")},
    )
    assert checked.stderr == ""
    return checked.stdout.splitlines()


def test_a_program_that_uses_the_client_correctly_passes_mypy(errors: list[str]) -> None:
    """Strict mypy accepts submit, wait_for and what an event holds."""
    assert [line for line in errors if line.startswith("correct.py")] == []


@pytest.mark.parametrize("name", WRONG)
def test_a_program_that_uses_the_client_wrongly_fails_mypy(name: str, errors: list[str]) -> None:
    """A wrong argument, a wrong result type and a forgotten rejection are one error or more each."""
    found = [line for line in errors if line.startswith(f"{name}.py") and ": error:" in line]
    assert found
    assert f"[{WRONG[name][2]}]" in found[0]
