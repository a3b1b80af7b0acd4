"""Prometheus and promtool, if the machine has them (Debian: apt-get install prometheus)."""

import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from http import HTTPStatus
from pathlib import Path
from typing import Any

import yaml

from worker.embedded.guarded_process import GuardedProcess
from worker.embedded.startup import HOST, free_ports, wait_until

SERVER = shutil.which("prometheus")
PROMTOOL = shutil.which("promtool")


def promtool(*words: str | Path) -> str:
    """Run promtool and return its output. Raises AssertionError with the output when it fails."""
    assert PROMTOOL
    command = [PROMTOOL, *map(str, words)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout + found.stderr


class Prometheus:
    """A server with a configuration on a free loopback port, its data in `folder`."""

    def __init__(self, folder: Path, configuration: dict[str, Any]) -> None:
        assert SERVER
        self.port = free_ports(1)[0]
        path = folder / "prometheus.yml"
        path.write_text(yaml.safe_dump(configuration), encoding="utf-8")
        self.process = GuardedProcess(
            [
                SERVER,
                f"--config.file={path}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={HOST}:{self.port}",
            ],
            log=folder / "prometheus.log",
        )
        wait_until(self._ready, self.process, "Prometheus")

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{HOST}:{self.port}/-/ready", timeout=2) as answer:
                return bool(answer.status == HTTPStatus.OK)
        except OSError:
            return False

    def get(self, path: str, **parameters: str) -> Any:
        """Return the `data` of a reply of the HTTP API. Raises urllib.error.URLError."""
        query = urllib.parse.urlencode(parameters)
        url = f"http://{HOST}:{self.port}/api/v1/{path}?{query}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the samples of an expression now. Raises HTTPError for an invalid expression."""
        found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return found

    def targets(self) -> dict[str, str]:
        """Return the health (up, down, unknown) of each job's target."""
        active = self.get("targets", state="active")["activeTargets"]
        return {target["labels"]["job"]: target["health"] for target in active}
