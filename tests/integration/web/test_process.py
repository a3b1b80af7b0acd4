"""The command `dnf-worker web` as a process: links, probes, metrics, its end."""

import json
import os
import re
import signal
import sys
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from subprocess import run

from worker.embedded.guarded_process import GuardedProcess
from worker.embedded.startup import free_ports

_COMMAND = [sys.executable, "-m", "worker.cli", "web"]


def environment(*parts: Mapping[str, str]) -> dict[str, str]:
    """Return this process' variables without its own DNF_ ones, and these."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DNF_")}
    return {**inherited, **{name: value for part in parts for name, value in part.items()}}


def test_the_page_prints_its_links_serves_probes_and_metrics_and_ends_within_its_grace(
    service_environment: dict[str, str],
    database_environment: dict[str, str],
    tmp_path: Path,
    wait_until: Callable[..., None],
) -> None:
    """A moderator's link opens the page; /readyz asks PostgreSQL; SIGTERM ends it with status 0."""
    port, probes = free_ports(2)
    log = tmp_path / "web.log"
    process = GuardedProcess(
        [*_COMMAND, "--link", "senior", "--link", "moderator"],
        log=log,
        environment=environment(
            service_environment,
            database_environment,
            {"DNF_WEB_HOST": "127.0.0.1", "DNF_WEB_PORT": str(port), "DNF_HTTP_PORT": str(probes)},
        ),
    )
    try:
        wait_until(lambda: "startup complete" in log.read_text(), "the page is served")
        links = re.findall(r"^(\w+): (http://\S+)$", log.read_text(), re.MULTILINE)
        assert [role for role, _ in links] == ["senior", "moderator"]
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        assert "Nothing is waiting" in opener.open(links[0][1], timeout=10).read().decode()
        with urllib.request.urlopen(f"http://127.0.0.1:{probes}/readyz", timeout=10) as ready:
            assert json.load(ready)["reason"] == "PostgreSQL answers"
        with urllib.request.urlopen(f"http://127.0.0.1:{probes}/metrics", timeout=10) as metrics:
            assert 'dnf_web_requests_total{endpoint="page",status="2xx"} 1.0' in metrics.read().decode()
        process.signal(signal.SIGTERM)
        assert process.popen.wait(20) == 0
    finally:
        process.kill()


def test_a_link_is_for_this_machine_alone_and_for_roles_that_exist(
    database_environment: dict[str, str],
) -> None:
    """Served to the network, or for a role that does not exist: one line and status 2."""
    for roles, words in (("admin", "needs a loopback address"), ("boss", "the roles are moderator")):
        finished = run(
            [*_COMMAND, "--link", roles],
            env=environment(database_environment, {"DNF_WEB_HOST": "::", "DNF_WEB_PORT": "0"}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert finished.returncode == 2
        assert words in finished.stderr
        assert "Traceback" not in finished.stderr
