"""A misspelt variable is named in the log of whatever it was meant for."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("command", [["run", "--unsupervised"], ["exporter"]])
def test_a_variable_that_is_no_setting_is_named_at_start_up(
    command: list[str], service_environment: dict[str, str]
) -> None:
    """Once, with the setting that was meant; the process then ends for another reason."""
    environment = {
        **service_environment,
        "PYTHONPATH": ":".join(sys.path),
        "DNF_REDS_URL": "redis://elsewhere:6379/0",
        "DNF_BUNDLE": "no-such-bundle",
        # No machine has this address.
        "DNF_HTTP_HOST": "192.0.2.1",
        "DNF_HTTP_PORT": "9999",
        "DNF_LOG_FORMAT": "json",
    }
    done = subprocess.run(
        [sys.executable, "-m", "worker.cli", *command],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "unknown_settings_ignored" in line]
    assert len(lines) == 1
    assert "DNF_REDS_URL (DNF_REDIS_URL?)" in lines[0]
