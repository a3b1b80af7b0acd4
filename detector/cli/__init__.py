"""dnf-detector: check pictures, compute features, inspect, convert, train, evaluate and benchmark bundles."""

import csv
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
import structlog
from PIL import Image
from rich.progress import Progress
from rich.table import Column, Table

from detector.bundle.files import Bundle, resolve
from detector.cli.bench import bench
from detector.cli.checking import CheckedFile, RejectedFile, check_files, pictures_in
from detector.cli.crossvalidate import crossvalidate
from detector.cli.errors import WrongUsageError, plain_errors
from detector.cli.evaluate import evaluate
from detector.cli.refit import refit
from detector.cli.train import train
from detector.detector import Detector, Dtype
from detector.images.decode import ImageRejectedError, decode
from detector.images.thumbnail import SUFFIX, dnf_picture, dnf_thumbnail, saved_picture
from detector.terminal import Console, Group, echo, echo_json, escaped, shown

_COLOURS = {"real": "green", "review": "yellow", "generated": "red"}

_existing = click.Path(exists=True, path_type=Path)
_bundle = click.option(
    "--bundle", default="default", show_default=True, help="A folder, a shipped name, s3://... or a hub id."
)
_device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
_dtype = click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    show_default=True,
    help="auto is bfloat16 on CUDA.",
)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dnf-moderation")
def main() -> None:
    """Tell photographs from AI-generated pictures by their Diffusion Noise Feature."""
    # Standard output has the results. The stream is looked up at each event, since a test may replace it.
    structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))


main.add_command(train)
main.add_command(crossvalidate)
main.add_command(evaluate)
main.add_command(bench)
main.add_command(refit)


@main.command(
    epilog="""\b
Examples:
  dnf-detector check photos/
  dnf-detector check photos/ --json | jq 'select(.verdict == "generated").path'
"""
)
@click.argument("paths", nargs=-1, required=True, type=_existing, metavar="PATH...")
@_bundle
@_device
@_dtype
@click.option(
    "--batch-size", type=click.IntRange(1, 512), default=16, show_default=True, help="Pictures at once."
)
@click.option(
    "--stability", is_flag=True, help="Send verdicts that a re-encoding changes to review; takes 4x as long."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per picture and line.")
@click.option(
    "--csv", "csv_file", type=click.Path(path_type=Path, dir_okay=False), help="Write path and score here."
)
@click.option(
    "--thumbnails", type=click.Path(path_type=Path, file_okay=False), help="Write each DNF as a picture here."
)
def check(
    paths: tuple[Path, ...],
    *,
    bundle: str,
    device: str,
    dtype: Dtype,
    batch_size: int,
    stability: bool,
    as_json: bool,
    csv_file: Path | None,
    thumbnails: Path | None,
) -> None:
    """Check files, and all pictures in folders.

    Exit status: 0 when every file has a verdict, 1 when any was rejected, 2 for wrong usage.
    """
    files = pictures_in(paths)
    if not files:
        raise WrongUsageError("there are no pictures in these folders")
    detector = _load(bundle, device, dtype)
    rejected = False
    path = Column("Picture", overflow="fold")
    table = Table(path, "Verdict", "Score", "Logit", "Size", title=shown(_title(detector.bundle)))
    # Progress is for a person at a terminal; a pipe gets only the results.
    progress = Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
    with ExitStack() as stack:
        rows = None
        if csv_file:
            rows = csv.writer(stack.enter_context(csv_file.open("w", newline="", encoding="utf-8")))
            rows.writerow(["path", "score"])
        task = stack.enter_context(progress).add_task("Checking", total=len(files))
        results = check_files(detector, files, batch_size=batch_size, stability=stability)
        for index, result in enumerate(results):
            record = _record(result)
            rejected = rejected or isinstance(result, RejectedFile)
            if as_json:
                echo_json(record)
            else:
                table.add_row(*_cells(record))
            if rows:
                rows.writerow([record["path"], record.get("score", "")])
            if thumbnails and isinstance(result, CheckedFile):
                thumbnails.mkdir(parents=True, exist_ok=True)
                # Numbered, because files in different folders can have the same name.
                thumbnail = thumbnails / f"{index:05d}-{result.path.stem}{SUFFIX}"
                thumbnail.write_bytes(dnf_thumbnail(result.finding.dnf))
            progress.advance(task)
    if not as_json:
        Console().print(table)
    sys.exit(int(rejected))


@main.command(epilog="Example: dnf-detector dnf photo.jpg --out feature.npy")
@click.argument("image", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_bundle
@_device
@_dtype
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help=".npy or .png")
def dnf(image: Path, *, bundle: str, device: str, dtype: Dtype, out: Path) -> None:
    """Compute the noise feature of one picture.

    An .npy file holds float32 (C, S, S). A .png file shows signed values around grey; for a bundle that
    quantises, it is the picture that the published pipeline saves.
    """
    if out.suffix not in {".npy", ".png"}:
        raise WrongUsageError("--out must end in .npy or .png")
    try:
        picture = decode(image.read_bytes())
    except ImageRejectedError as error:
        raise click.ClickException(f"{image}: {error.reason}: {error}") from error
    detector = _load(bundle, device, dtype)
    feature = detector.examine([detector.prepare(picture.pixels)])[0].dnf
    if out.suffix == ".npy":
        np.save(out, feature)
    else:
        shown = saved_picture if detector.bundle.manifest.dnf.quantise else dnf_picture
        Image.fromarray(shown(feature)).save(out)
    echo(f"{out}: {feature.shape}, mean {feature.mean():.4f}, deviation {feature.std():.4f}")


@main.command(epilog="Example: dnf-detector inspect default")
@click.argument("bundle")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest and its digest as one JSON object.")
def inspect(bundle: str, *, as_json: bool) -> None:
    """Show a bundle's manifest and figures, and verify its digests."""
    with plain_errors():
        found = resolve(bundle)
    manifest = found.manifest.model_dump(mode="json")
    if as_json:
        echo_json(manifest | {"digest": found.digest}, indent=2)
        return
    console = Console(markup=False, highlight=False, soft_wrap=True)
    console.print(escaped(f"{_title(found)}, created {found.manifest.created}"), style="bold")
    console.print(f"digest {found.digest}")
    for section in ("preprocessing", "dnf", "unet", "classifier", "calibration", "thresholds", "provenance"):
        console.print(f"{section:<15}{_inline(manifest[section])}")
    for name, values in manifest["figures"].items():
        console.print(f"{escaped(name):<15}{_inline(values)}")
    console.print("files, SHA-256 verified:")
    for name, digest in found.manifest.files.items():
        console.print(f"{digest} {(found.folder / name).stat().st_size:>13,} bytes  {escaped(name)}")


@main.command(
    epilog="""\b
Example:
  dnf-detector convert --ddim model.ckpt --unet-config bedroom.json --classifier authors.pth --out paper
"""
)
@click.option("--ddim", required=True, type=_existing, help="U-Net state dict with the DDIM authors' names.")
@click.option("--unet-config", required=True, type=_existing, help="The U-Net's configuration, as JSON.")
@click.option("--classifier", required=True, type=_existing, help='State dict, or {"model": state dict}.')
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="New folder.")
@click.option("--name", help="The bundle's name; the folder's by default.")
def convert(ddim: Path, unet_config: Path, classifier: Path, out: Path, name: str | None) -> None:
    """Convert the paper's checkpoints to a bundle, with the paper's preprocessing and quantisation."""
    from detector.networks.conversion import convert as convert_checkpoints

    with plain_errors():
        bundle = convert_checkpoints(ddim, unet_config, classifier, out, name=name)
    echo(f"{bundle.folder}: {_title(bundle)}, digest {bundle.digest}")


def _load(bundle: str, device: str, dtype: Dtype) -> Detector:
    with plain_errors():
        return Detector.load(bundle, device=device, dtype=dtype)


def _title(bundle: Bundle) -> str:
    return f"{bundle.manifest.name} {bundle.manifest.version}"


def _inline(values: dict[str, Any] | None) -> str:
    return (
        "none" if values is None else escaped(", ".join(f"{name} {value}" for name, value in values.items()))
    )


def _record(result: CheckedFile | RejectedFile) -> dict[str, Any]:
    if isinstance(result, RejectedFile):
        return {"path": str(result.path), "rejected": result.reason, "detail": result.detail}
    return {
        "path": str(result.path),
        "verdict": result.verdict,
        "score": result.finding.probability,
        "logit": result.finding.logit,
        "width": result.width,
        "height": result.height,
        "format": result.format,
    }


def _cells(record: dict[str, Any]) -> tuple[str, ...]:
    path = shown(record["path"])
    if "rejected" in record:
        return path, f"[magenta]rejected: {record['rejected']}[/]", "", "", ""
    verdict = cast("str", record["verdict"])
    return (
        path,
        f"[{_COLOURS[verdict]}]{verdict}[/]",
        f"{record['score']:.3f}",
        f"{record['logit']:+.2f}",
        f"{record['width']} x {record['height']}",
    )
