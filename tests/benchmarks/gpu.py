"""`python -m tests.benchmarks.gpu FOLDER` (make gpu-bench): all figures of a GPU in at most eight minutes.

Each step is a command of its own that leaves a JSON file; what fails or takes too long costs no other step.
Without a GPU it prints what it would do. `--rehearse` runs it on the CPU with tiny networks.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click

from detector.terminal import echo

TOTAL_SECONDS = 480.0


@dataclass(frozen=True)
class Step:
    """One command, what it measures and how long it may take."""

    name: str
    measures: str
    arguments: tuple[str, ...]
    seconds: float
    variables: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of a step: its JSON, or the end of what it printed."""

    name: str
    command: str
    seconds: float
    #: 0; None: stopped, or not begun, because the time was up.
    status: int | None
    figures: Any
    tail: str


def steps(folder: Path, *, rehearse: bool = False) -> list[Step]:
    """Return the steps, which read the bundle of `folder` and write there."""
    bundle, device = str(folder / "bundle"), "cpu" if rehearse else "cuda"
    compiles: tuple[str, ...] = () if rehearse else ("--compile",)
    size, checks, rounds, dtype = ("2", "20", "1", "float32") if rehearse else ("32", "1000", "3", "bfloat16")
    bench = ("-c", "from detector.cli import main; main()", "bench", bundle, "--device", device)
    path, once = ("-m", "tests.benchmarks"), ("--rounds", "1")
    pictures = ("--pictures", "4" if rehearse else "1024")
    counts = [option for count in ("1", "2", "4") for option in ("--processes", count)]
    compiled = (("DNF_DEVICE", device), ("DNF_COMPILE", str(not rehearse)))
    return [
        Step(
            "paper",
            "times as fast as the published pipeline (goal: 8)",
            (*bench, "--paper", "--batch-size", size, "--rounds", rounds, *compiles),
            130,
        ),
        Step(
            "stages",
            "milliseconds by stage and the U-Net's share of the peak (goal: 35 %)",
            (*bench, "--dtype", dtype, "--batch-size", size, *compiles),
            60,
        ),
        Step("graphs", "the same without compilation", (*bench, "--dtype", dtype, "--batch-size", size), 30),
        Step(
            "path",
            "the whole path's rate to the bare detector's (goal: 0.9) and the GPU's busy share",
            (*path, "detector", "--bundle", bundle, *counts, *pictures, "--batch-size", size, *once),
            200,
            compiled,
        ),
        Step(
            "null",
            "checks per second that the path can feed, without networks",
            (*path, "path", "--picture", "512", *counts, "--checks", checks, *once),
            60,
        ),
    ]


def run_steps(
    planned: Sequence[Step], folder: Path, *, total_seconds: float = TOTAL_SECONDS
) -> list[Outcome]:
    """Run the steps in order within their limits and that of all; write `gpu-bench.json` after each."""
    ends, outcomes = time.monotonic() + total_seconds, list[Outcome]()
    for step in planned:
        outcomes.append(_run(step, folder, min(step.seconds, ends - time.monotonic())))
        record = [asdict(outcome) for outcome in outcomes]
        (folder / "gpu-bench.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return outcomes


def _run(step: Step, folder: Path, seconds: float) -> Outcome:
    file, log = folder / f"{step.name}.json", folder / f"{step.name}.log"
    command = [sys.executable, *step.arguments, "--json", str(file)]
    outcome = Outcome(step.name, shlex.join(command), 0.0, None, None, "")
    if seconds <= 0:
        return outcome
    # What one step compiles the next ones load.
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "TRITON_CACHE_DIR": str(folder / "triton")}
    environment = {**os.environ, **caches, **dict(step.variables)}
    began = time.monotonic()
    with log.open("wb") as output:
        try:
            status: int | None = subprocess.run(
                command, stdout=output, stderr=output, env=environment, timeout=seconds, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            # Its workers end with it: GuardedProcess.
            status = None
    figures = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
    return replace(outcome, seconds=time.monotonic() - began, status=status, figures=figures, tail=tail)


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--rehearse", is_flag=True, help="On the CPU, with tiny networks.")
def main(folder: Path, *, rehearse: bool) -> None:
    """Measure a GPU and leave gpu-bench.json in FOLDER; without a GPU say what it would do."""
    import torch

    planned = steps(folder, rehearse=rehearse)
    if not rehearse and not torch.cuda.is_available():
        echo("PyTorch finds no GPU. With one, this runs in at most eight minutes:")
        for step in planned:
            settings = "".join(f"{name}={value} " for name, value in step.variables)
            echo(f"{step.name}, at most {step.seconds:.0f} s: {step.measures}")
            echo(f"  {settings}python {shlex.join(step.arguments)} --json {folder / step.name}.json")
        return
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    _write_bundle(folder / "bundle", tiny=rehearse)
    # A rehearsal shows that the steps work, on a machine of any speed.
    patience = 10 if rehearse else 1
    planned = [replace(step, seconds=step.seconds * patience) for step in planned]
    left = patience * TOTAL_SECONDS - (time.monotonic() - began)
    outcomes = run_steps(planned, folder, total_seconds=left)
    for outcome in outcomes:
        ended = {None: "stopped: the time was up", 0: "done"}.get(outcome.status, "failed")
        echo(f"{outcome.name}: {ended} after {outcome.seconds:.0f} s")
        for line in outcome.tail.splitlines():
            echo(f"  {line}")
    if any(outcome.status != 0 for outcome in outcomes):
        raise click.ClickException("Not every step was completed; gpu-bench.json has what was measured.")


def _write_bundle(folder: Path, *, tiny: bool) -> None:
    if tiny:
        from tests.tiny_bundle import make_tiny_bundle

        make_tiny_bundle(folder)
    else:
        from detector.benchmark.paper_pipeline import full_size_bundle

        full_size_bundle(folder)


if __name__ == "__main__":
    main(prog_name="python -m tests.benchmarks.gpu")
