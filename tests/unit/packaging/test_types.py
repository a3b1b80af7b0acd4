"""Programs that use the packages are type-checked against their annotations (PEP 561)."""

import subprocess
import sys
from pathlib import Path

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


def _check(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run mypy outside of the repository, so that it finds the packages as a user's project does."""
    (folder / "program.py").write_text(program, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "program.py"]
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder)


def test_a_program_that_uses_the_client_correctly_passes_mypy(tmp_path: Path) -> None:
    """Strict mypy accepts submit, wait_for and what an event holds."""
    checked = _check(CORRECT, tmp_path)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    ("correct", "wrong", "code"),
    [
        ("timeout_seconds=60", 'timeout_seconds="60"', "arg-type"),
        ("check_id: str", "check_id: int", "assignment"),
        ("data.reason if isinstance(data, Rejection) else ", "", "union-attr"),
    ],
)
def test_a_program_that_uses_the_client_wrongly_fails_mypy(
    correct: str, wrong: str, code: str, tmp_path: Path
) -> None:
    """A wrong argument, a wrong result type and a forgotten rejection are errors."""
    checked = _check(CORRECT.replace(correct, wrong), tmp_path)
    assert checked.returncode == 1
    assert f"[{code}]" in checked.stdout
