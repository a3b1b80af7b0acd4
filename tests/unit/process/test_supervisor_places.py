"""How many worker processes there are, and what each is given."""

import os
import subprocess
import sys

import pytest

from worker.process.supervisor import worker_environments
from worker.settings import Settings


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the caller's own variables out."""
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
        # CUDA sees nothing from the first entry on that is no device.
        ("0,-1,1", None, ["0"]),
    ],
)
def test_each_visible_gpu_has_one_process_or_as_many_as_asked_in_turn(
    monkeypatch: pytest.MonkeyPatch, visible: str, processes: int | None, expected: list[str]
) -> None:
    """The GPUs are those of CUDA_VISIBLE_DEVICES, in its order."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = worker_environments(Settings(processes=processes))
    assert [place["CUDA_VISIBLE_DEVICES"] for place in found] == expected


@pytest.mark.parametrize(
    ("visible", "device"), [("", "auto"), ("-1", "auto"), ("0,1", "cpu"), ("0,1", "cuda:1")]
)
def test_without_a_gpu_or_with_a_device_that_is_named_there_is_one_process(
    monkeypatch: pytest.MonkeyPatch, visible: str, device: str
) -> None:
    """It finds its device by itself."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert worker_environments(Settings(device=device)) == [{}]


def test_processes_on_a_cpu_share_its_cores_and_serve_on_ports_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Unless the threads of the numerics are set already."""
    monkeypatch.setenv("DNF_HTTP_PORT", "9100")
    found = worker_environments(Settings(device="cpu", processes=2))
    assert [place["DNF_HTTP_PORT"] for place in found] == ["9100", "9101"]
    assert {int(place["OMP_NUM_THREADS"]) for place in found} <= set(range(1, (os.cpu_count() or 1) + 1))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert all(
        "OMP_NUM_THREADS" not in place for place in worker_environments(Settings(device="cpu", processes=2))
    )


def test_a_supervisor_loads_no_torch() -> None:
    """Two hundred megabytes and seconds that it has no use for; nor does the command that starts it."""
    program = (
        "import sys, worker.cli, worker.process.supervisor as s; from worker.settings import Settings;"
        "s.worker_environments(Settings()); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
