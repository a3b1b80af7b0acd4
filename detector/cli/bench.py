"""dnf-detector bench."""

import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from detector.bundle.files import Bundle, resolve
from detector.cli.errors import WrongUsageError, plain_errors
from detector.cli.sections import SectionedCommand, section
from detector.terminal import Console, echo

if TYPE_CHECKING:
    from detector.benchmark.speed import Comparison, Measurement
    from detector.detector import Dtype


@click.command(
    cls=SectionedCommand,
    epilog="""\b
Examples:
  dnf-detector bench --device cuda --json bench.json
  dnf-detector bench --full-size --paper
""",
)
@click.argument("bundle", required=False)
@section(
    "What to measure",
    click.option("--device", "devices", multiple=True, help="auto, cpu, cuda or cuda:N; may be repeated."),
    click.option(
        "--dtype",
        "dtypes",
        multiple=True,
        type=click.Choice(["float32", "bfloat16"]),
        help="May be repeated; default: those that the device has instructions for.",
    ),
    click.option(
        "--batch-size",
        "batch_sizes",
        multiple=True,
        type=click.IntRange(1, 512),
        help="Pictures at once; may be repeated. In a comparison, pictures per round; default: 2.",
    ),
    click.option("--threads", type=click.IntRange(1, 256), help="CPU threads of the networks."),
    click.option("--compile", "compiled", is_flag=True, help="Compile the U-Net with PyTorch first."),
    click.option("--full-size", is_flag=True, help="Networks of the published size with random weights."),
    click.option("--paper", is_flag=True, help="Compare with the published pipeline on the same weights."),
    click.option("--plain", is_flag=True, help="Compare with the same networks on PyTorch's layers."),
)
@section(
    "How to measure",
    click.option(
        "--rounds", type=click.IntRange(1, 100), default=3, show_default=True, help="Measurements per row."
    ),
    click.option(
        "--peak-tflops",
        type=click.FloatRange(min=0, min_open=True),
        help="Peak of the device in bfloat16, if it is not a known one.",
    ),
    click.option(
        "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write all figures here."
    ),
)
def bench(
    bundle: str | None,
    *,
    devices: tuple[str, ...],
    dtypes: "tuple[Dtype, ...]",
    batch_sizes: tuple[int, ...],
    threads: int | None,
    compiled: bool,
    full_size: bool,
    paper: bool,
    plain: bool,
    rounds: int,
    peak_tflops: float | None,
    json_file: Path | None,
) -> None:
    """Measure the speed of BUNDLE (default: default): throughput, stages, memory and arithmetic.

    With --paper or --plain, run another pipeline and this one alternately in one process and print the ratio.
    """
    import torch

    from detector.benchmark.speed import device_name, flops_per_picture, measure

    devices = devices or ("auto",)
    if paper and plain:
        raise WrongUsageError("--paper and --plain are two comparisons; give one of them")
    _check(bundle, devices, batch_sizes, full_size=full_size, compares=paper or plain)
    if threads is not None:
        torch.set_num_threads(threads)
    rows: list[Measurement] = []
    comparison: Comparison | None = None
    names = ("", "")
    with plain_errors(), tempfile.TemporaryDirectory() as name:
        measured = _full_size(Path(name)) if full_size else resolve(bundle or "default")
        flops = flops_per_picture(measured)
        if paper or plain:
            comparison, names = _compare(
                measured,
                Path(name) if paper else None,
                device=devices[0],
                dtypes=dtypes,
                pictures=batch_sizes[0] if batch_sizes else 2,
                rounds=rounds,
                compiled=compiled,
            )
        else:
            rows = measure(
                measured,
                devices=devices,
                dtypes=dtypes,
                batch_sizes=batch_sizes,
                rounds=rounds,
                peak_tflops=peak_tflops,
                compiled=compiled,
            )
    title = f"{measured.manifest.name} {measured.manifest.version}"
    machine = {"cpu": device_name("cpu"), "threads": torch.get_num_threads(), "torch": torch.__version__}
    if json_file:
        record: dict[str, Any] = {"bundle": title, "machine": machine, "flops_per_picture": flops}
        record["rows"] = [asdict(row) for row in rows]
        named = {"reference": names[0], "ours": names[1]}
        record["comparison"] = comparison and {**asdict(comparison), "ratio": comparison.ratio, **named}
        json_file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    console = Console()
    described = ", ".join(f"{name} {value}" for name, value in machine.items())
    console.print(f"{title}, {flops / 1e9:.1f} GFLOP per picture; {described}", highlight=False)
    if comparison:
        _print_comparison(console, comparison, names)
    else:
        console.print(_table(rows))
        for line in sorted({f"{row.device}, {row.dtype}: {row.acceleration}" for row in rows}):
            console.print(line, highlight=False)


def _check(
    bundle: str | None,
    devices: tuple[str, ...],
    batch_sizes: tuple[int, ...],
    *,
    full_size: bool,
    compares: bool,
) -> None:
    import torch

    if bundle and full_size:
        raise WrongUsageError("--full-size draws its own weights; name no bundle with it")
    if compares and (len(devices) > 1 or len(batch_sizes) > 1):
        raise WrongUsageError("a comparison is of one device and one batch size")
    for device in devices:
        kind, _, index = device.partition(":")
        if kind not in {"auto", "cpu", "cuda", "mps"}:
            raise WrongUsageError(f"{device} is not a device; give auto, cpu, cuda, cuda:N or mps")
        if kind == "cuda" and not (index or "0").isdigit():
            raise WrongUsageError(f"{device} is not a device; CUDA devices are numbered")
        if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
            raise WrongUsageError(f"PyTorch finds no device {device} on this machine")


def _full_size(folder: Path) -> Bundle:
    from detector.benchmark.paper_pipeline import full_size_bundle

    if sys.stderr.isatty():
        echo("Drawing 137 M random weights", err=True)
    return full_size_bundle(folder / "bundle")


def _compare(
    bundle: Bundle,
    published: Path | None,
    *,
    device: str,
    dtypes: "tuple[Dtype, ...]",
    pictures: int,
    rounds: int,
    compiled: bool,
) -> "tuple[Comparison, tuple[str, str]]":
    """Return the comparison with the published pipeline, which writes to `published`, or with plain layers.

    With a description of both sides.
    """
    from detector.benchmark.paper_pipeline import PaperPipeline
    from detector.benchmark.speed import Pipeline, compare, our_pipeline, sample_files, usual_dtypes
    from detector.detector import Detector

    dtype = dtypes[0] if dtypes else usual_dtypes(device)[-1 if published else 0]
    detector = Detector.load(bundle, device=device, dtype=dtype, compiled=compiled)
    ours = f"{detector.device}, {detector.dtype}, {detector.acceleration}"
    with ThreadPoolExecutor(1) as pool:
        reference: Pipeline
        if published:
            reference = PaperPipeline(bundle, published, device=detector.device).logits
            name = "published: float32, contiguous, features in files"
        else:
            plain = Detector.load(bundle, device=device, dtype=dtype, plain=True)
            reference, name = our_pipeline(plain, pool), f"plain: {plain.dtype}, {plain.acceleration}"
        files = sample_files(pictures)
        comparison = compare(reference, our_pipeline(detector, pool), files, rounds=rounds)
    return comparison, (name, ours)


def _table(rows: "list[Measurement]") -> Table:
    heads = ("Decode ms", "Prepare ms", "DNF ms", "Classify ms", "Pictures/s", "TFLOP/s", "Of peak", "MiB")
    table = Table("Device", "Type", "Batch", *heads)
    for row in rows:
        stages = (row.decode_ms, row.prepare_ms, row.dnf_ms, row.classify_ms)
        share = "" if row.peak_share is None else f"{row.peak_share:.0%}"
        figures = (
            f"{row.pictures_per_second:.2f}",
            f"{row.tflops:.3f}",
            share,
            f"{row.memory_bytes / 2**20:.0f}",
        )
        cells = (row.device, row.dtype, str(row.batch_size), *(f"{stage:.1f}" for stage in stages), *figures)
        table.add_row(*cells)
    return table


def _print_comparison(console: Console, comparison: "Comparison", names: tuple[str, str]) -> None:
    table = Table("Pipeline", "Seconds per picture", "Processor seconds")
    reference = comparison.reference_seconds, comparison.reference_cpu_seconds
    ours = comparison.ours_seconds, comparison.ours_cpu_seconds
    for name, seconds in zip((names[0], f"ours: {names[1]}"), (reference, ours), strict=True):
        table.add_row(name, *(f"{each:.3f}" for each in seconds))
    console.print(table)
    low, high = min(comparison.ratios), max(comparison.ratios)
    console.print(
        f"{comparison.ratio:.2f} times as fast, {low:.2f} to {high:.2f} in {len(comparison.ratios)} rounds; "
        f"{comparison.cpu_ratio:.2f} by processor time; logits differ by at most "
        f"{comparison.largest_logit_difference:.4f}",
        highlight=False,
    )
