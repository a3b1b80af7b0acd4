"""A relay process, for every test that needs one."""

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PATIENCE
from worker.embedded.guarded_process import GuardedProcess


class RelayProcess:
    """`dnf-worker relay` with a log of its own; it can be killed and started again."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self.environment = dict(environment)
        self.log = log
        self.guarded: GuardedProcess | None = None

    def start(self) -> None:
        """Start the process; return at once."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("DNF_")}
        self.guarded = GuardedProcess(
            [sys.executable, "-m", "worker.cli", "relay"],
            log=self.log,
            environment={**inherited, **self.environment, "DNF_LOG_FORMAT": "json"},
        )

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.guarded is not None and self.guarded.alive

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the log lines of an event."""
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        parsed = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        return [line for line in parsed if line.get("event") == name]

    def wait_for_event(self, name: str, *, count: int = 1, seconds: float = 30.0) -> None:
        """Wait until the process has logged an event so often; fail when it ends first."""
        deadline = time.monotonic() + seconds * PATIENCE
        while len(self.events(name)) < count:
            if not self.alive or time.monotonic() > deadline:
                tail = self.guarded.tail(30) if self.guarded else ""
                pytest.fail(f"no {name} of the relay:\n{tail}")
            time.sleep(0.05)

    def kill(self) -> None:
        """Kill the process (SIGKILL), like a crash."""
        if self.guarded:
            self.guarded.kill()

    def stop(self) -> int:
        """Stop the process gracefully; return its exit status."""
        assert self.guarded is not None
        return self.guarded.stop()
