"""dnf-detector bench."""

import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from detector.bundle.files import Bundle, BundleError, resolve

if TYPE_CHECKING:
    from detector.benchmark.speed import Comparison, Measurement
    from detector.detector import Dtype


@click.command()
@click.argument("bundle", required=False)
@click.option("--device", "devices", multiple=True, help="auto, cpu, cuda or cuda:N; may be repeated.")
@click.option(
    "--dtype",
    "dtypes",
    multiple=True,
    type=click.Choice(["float32", "bfloat16"]),
    help="May be repeated; float32 and, where the device computes in it, bfloat16 if not given.",
)
@click.option(
    "--batch-size",
    "batch_sizes",
    multiple=True,
    type=click.IntRange(1, 512),
    help="Pictures at once; may be repeated. With --paper, pictures a round (2).",
)
@click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True)
@click.option("--threads", type=click.IntRange(1, 256), help="CPU threads of the networks.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write it all here."
)
@click.option("--paper", is_flag=True, help="Ours against the published pipeline, on the same weights.")
@click.option("--full-size", is_flag=True, help="The published networks' sizes, random weights.")
@click.option("--compile", "compiled", is_flag=True, help="Let PyTorch compile the U-Net first.")
@click.option(
    "--peak-tflops", type=click.FloatRange(min=0, min_open=True), help="The device's peak in bfloat16."
)
def bench(
    bundle: str | None,
    *,
    devices: tuple[str, ...],
    dtypes: "tuple[Dtype, ...]",
    batch_sizes: tuple[int, ...],
    rounds: int,
    threads: int | None,
    json_file: Path | None,
    paper: bool,
    full_size: bool,
    compiled: bool,
    peak_tflops: float | None,
) -> None:
    """Measure BUNDLE (the default one, if none is named): speed, stages, memory and arithmetic.

    With --paper, time the published pipeline and ours in turn in one process and print the ratio.
    """
    import torch

    from detector.benchmark.speed import device_name, flops_a_picture, measure

    devices = devices or ("auto",)
    _check(bundle, devices, batch_sizes, full_size=full_size, paper=paper)
    if threads is not None:
        torch.set_num_threads(threads)
    rows: list[Measurement] = []
    comparison: Comparison | None = None
    how = ""
    try:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            found = _full_size(folder) if full_size else resolve(bundle or "default")
            flops = flops_a_picture(found)
            if paper:
                comparison, how = _compare(
                    found,
                    folder,
                    device=devices[0],
                    dtypes=dtypes,
                    batch_sizes=batch_sizes,
                    rounds=rounds,
                    compiled=compiled,
                )
            else:
                rows = measure(
                    found,
                    devices=devices,
                    dtypes=dtypes,
                    batch_sizes=batch_sizes,
                    rounds=rounds,
                    peak_tflops=peak_tflops,
                    compiled=compiled,
                )
            title = f"{found.manifest.name} {found.manifest.version}"
    except BundleError as error:
        raise click.UsageError(f"{error.reason}: {error}") from error
    machine = {"cpu": device_name("cpu"), "threads": torch.get_num_threads(), "torch": torch.__version__}
    if json_file:
        record: dict[str, Any] = {"bundle": title, "machine": machine, "flops_a_picture": flops}
        record["rows"] = [asdict(row) for row in rows]
        record["comparison"] = comparison and {**asdict(comparison), "ratio": comparison.ratio, "ours": how}
        json_file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    console = Console()
    console.print(f"{title}, {flops / 1e9:.1f} GFLOP a picture; " + _inline(machine), highlight=False)
    if comparison:
        _print_comparison(console, comparison, how)
    else:
        console.print(_table(rows))
        for how in sorted({f"{row.device}, {row.dtype}: {row.acceleration}" for row in rows}):
            console.print(how, highlight=False)


def _check(
    bundle: str | None,
    devices: tuple[str, ...],
    batch_sizes: tuple[int, ...],
    *,
    full_size: bool,
    paper: bool,
) -> None:
    import torch

    if bundle and full_size:
        raise click.UsageError("--full-size makes its own weights; name no bundle with it")
    if paper and (len(devices) > 1 or len(batch_sizes) > 1):
        raise click.UsageError("--paper compares on one device and one batch size")
    for device in devices:
        kind, _, index = device.partition(":")
        if kind not in {"auto", "cpu", "cuda", "mps"}:
            raise click.UsageError(f"{device} is no device; give auto, cpu, cuda, cuda:N or mps")
        if kind == "cuda" and not (index or "0").isdigit():
            raise click.UsageError(f"{device} is no device; CUDA devices are numbered")
        if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
            raise click.UsageError(f"PyTorch finds no device {device} on this machine")


def _full_size(folder: Path) -> Bundle:
    from detector.benchmark.paper_pipeline import full_size_bundle

    if sys.stderr.isatty():
        click.echo("Making 137 M random weights", err=True)
    return full_size_bundle(folder / "bundle")


def _compare(
    bundle: Bundle,
    folder: Path,
    *,
    device: str,
    dtypes: "tuple[Dtype, ...]",
    batch_sizes: tuple[int, ...],
    rounds: int,
    compiled: bool,
) -> "tuple[Comparison, str]":
    from detector.benchmark.paper_pipeline import PaperPipeline
    from detector.benchmark.speed import compare, our_pipeline, sample_files, usual_dtypes
    from detector.detector import Detector

    dtype = dtypes[0] if dtypes else usual_dtypes(device)[-1]
    detector = Detector.load(bundle, device=device, dtype=dtype, compiled=compiled)
    published = PaperPipeline(bundle, folder, device=detector.device)
    files = sample_files(batch_sizes[0] if batch_sizes else 2)
    with ThreadPoolExecutor(1) as pool:
        found = compare(published.logits, our_pipeline(detector, pool), files, rounds=rounds)
    return found, f"{detector.device}, {detector.dtype}, {detector.acceleration}"


def _table(rows: "list[Measurement]") -> Table:
    heads = ("Decode ms", "Prepare ms", "DNF ms", "Classify ms", "Pictures/s", "TFLOP/s", "Of peak", "MiB")
    table = Table("Device", "Type", "Batch", *heads)
    for row in rows:
        stages = (row.decode_ms, row.prepare_ms, row.dnf_ms, row.classify_ms)
        share = "" if row.peak_share is None else f"{row.peak_share:.0%}"
        figures = (f"{row.speed:.2f}", f"{row.tflops:.3f}", share, f"{row.memory_bytes / 2**20:.0f}")
        cells = (row.device, row.dtype, str(row.batch_size), *(f"{stage:.1f}" for stage in stages), *figures)
        table.add_row(*cells)
    return table


def _print_comparison(console: Console, comparison: "Comparison", how: str) -> None:
    table = Table("Pipeline", "Seconds a picture")
    table.add_row("published: float32, contiguous, through a file", f"{comparison.paper_seconds:.3f}")
    table.add_row(f"ours: {how}", f"{comparison.ours_seconds:.3f}")
    console.print(table)
    low, high = min(comparison.ratios), max(comparison.ratios)
    console.print(
        f"{comparison.ratio:.2f} times as fast, {low:.2f} to {high:.2f} in {len(comparison.ratios)} rounds; "
        f"{comparison.cpu_ratio:.2f} by processor time; logits differ by at most "
        f"{comparison.largest_logit_difference:.4f}",
        highlight=False,
    )


def _inline(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
