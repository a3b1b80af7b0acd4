"""The environments of the supervisor's worker processes."""

import os
import subprocess
import sys

import pytest

from worker.process.supervisor import worker_environments
from worker.settings import Settings


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the caller's variables."""
    for name in list(os.environ):
        if name.startswith(("DNF_", "CUDA_", "OMP_")):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("visible", "processes", "expected"),
    [
        ("0,1,2", None, ["0", "1", "2"]),
        ("GPU-a, GPU-b", None, ["GPU-a", "GPU-b"]),
        ("MIG-1,MIG-2", 1, ["MIG-1"]),
        ("0,1", 5, ["0", "1", "0", "1", "0"]),
        # CUDA ignores the first invalid entry and those after it.
        ("0,-1,1", None, ["0"]),
    ],
)
def test_each_visible_gpu_has_one_process_unless_a_number_is_set(
    monkeypatch: pytest.MonkeyPatch, visible: str, processes: int | None, expected: list[str]
) -> None:
    """GPUs are assigned in turn, in the order of CUDA_VISIBLE_DEVICES."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    environments = worker_environments(Settings(processes=processes))
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in environments] == expected


@pytest.mark.parametrize(
    ("visible", "device"), [("", "auto"), ("-1", "auto"), ("0,1", "cpu"), ("0,1", "cuda:1")]
)
def test_without_a_gpu_or_with_a_named_device_there_is_one_process(
    monkeypatch: pytest.MonkeyPatch, visible: str, device: str
) -> None:
    """Its environment is unchanged."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert worker_environments(Settings(device=device)) == [{}]


def test_processes_on_a_cpu_share_its_cores_and_have_ports_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An OMP_NUM_THREADS that is set already is kept."""
    monkeypatch.setenv("DNF_HTTP_PORT", "9100")
    settings = Settings(device="cpu", processes=2)
    environments = worker_environments(settings)
    assert [environment["DNF_HTTP_PORT"] for environment in environments] == ["9100", "9101"]
    threads = {int(environment["OMP_NUM_THREADS"]) for environment in environments}
    assert threads <= set(range(1, (os.cpu_count() or 1) + 1))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert all("OMP_NUM_THREADS" not in environment for environment in worker_environments(settings))


def test_a_supervisor_does_not_import_torch() -> None:
    """It would cost 200 MB and seconds for nothing; the command that starts it does not either."""
    program = (
        "import sys, worker.cli, worker.process.supervisor as s; from worker.settings import Settings;"
        "s.worker_environments(Settings()); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
