"""dnf-detector: check pictures, look at their feature, inspect, convert, train and measure bundles."""

import csv
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from deploy.generators.figure_cli import figure
from detector.bundle.files import Bundle, BundleError, resolve
from detector.cli.bench import bench
from detector.cli.evaluate import evaluate
from detector.cli.train import train

if TYPE_CHECKING:
    from detector.cli.checking import CheckedFile, RejectedFile
    from detector.detector import Detector, Dtype

_COLOURS = {"real": "green", "review": "yellow", "generated": "red"}

_existing = click.Path(exists=True, path_type=Path)
_bundle = click.option("--bundle", default="default", show_default=True, metavar="DIR|NAME|s3://...")
_device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
_dtype = click.option(
    "--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto", show_default=True
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dnf-moderation")
def main() -> None:
    """Tell photographs from AI-generated pictures by their Diffusion Noise Feature."""


main.add_command(train)
main.add_command(evaluate)
main.add_command(figure)
main.add_command(bench)


@main.command()
@click.argument("paths", nargs=-1, required=True, type=_existing, metavar="PATH...")
@_bundle
@_device
@_dtype
@click.option("--batch-size", type=click.IntRange(1, 512), default=16, show_default=True)
@click.option("--stability", is_flag=True, help="Review what re-encodings overturn; four times the time.")
@click.option("--json", "as_json", is_flag=True, help="One object a line.")
@click.option("--csv", "csv_file", type=click.Path(path_type=Path, dir_okay=False), help="Write path,score.")
@click.option("--thumbnails", type=click.Path(path_type=Path, file_okay=False), help="Write each DNF as PNG.")
def check(
    paths: tuple[Path, ...],
    *,
    bundle: str,
    device: str,
    dtype: "Dtype",
    batch_size: int,
    stability: bool,
    as_json: bool,
    csv_file: Path | None,
    thumbnails: Path | None,
) -> None:
    """Judge files, and the pictures in folders.

    Exit status: 0 when all were judged, 1 when any was rejected, 2 for wrong usage.
    """
    from detector.cli.checking import check_files, pictures_in

    files = pictures_in(paths)
    if not files:
        raise click.UsageError("there are no pictures in these folders")
    detector = _load(bundle, device, dtype)
    rejected = False
    table = Table("Picture", "Verdict", "Score", "Logit", "Size", title=_title(detector.bundle))
    # Progress is for a person at a terminal; a pipe gets the results alone.
    progress = Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
    with ExitStack() as stack:
        rows = None
        if csv_file:
            rows = csv.writer(stack.enter_context(csv_file.open("w", newline="", encoding="utf-8")))
            rows.writerow(["path", "score"])
        task = stack.enter_context(progress).add_task("Judging", total=len(files))
        results = check_files(detector, files, batch_size=batch_size, stability=stability)
        for index, result in enumerate(results):
            record = _record(result)
            rejected = rejected or "rejected" in record
            if as_json:
                click.echo(json.dumps(record))
            else:
                _add_row(table, record)
            if rows:
                rows.writerow([record["path"], record.get("score", "")])
            if thumbnails:
                _write_thumbnail(thumbnails, index, result)
            progress.advance(task)
    if not as_json:
        Console().print(table)
    sys.exit(int(rejected))


@main.command()
@click.argument("image", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_bundle
@_device
@_dtype
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help=".npy or .png")
def dnf(image: Path, *, bundle: str, device: str, dtype: "Dtype", out: Path) -> None:
    """Compute the feature of one picture.

    An .npy file holds float32 (C, S, S); a .png file shows it, as the published pipeline saves it when the
    bundle quantises, else signed around grey.
    """
    import numpy as np
    from PIL import Image

    from detector.images.decode import ImageRejectedError, decode
    from detector.images.thumbnail import dnf_picture, saved_picture

    if out.suffix not in {".npy", ".png"}:
        raise click.UsageError("--out must end in .npy or .png")
    try:
        picture = decode(image.read_bytes())
    except ImageRejectedError as error:
        raise click.ClickException(f"{image}: {error.reason}: {error}") from error
    detector = _load(bundle, device, dtype)
    feature = detector.examine([detector.prepare(picture.pixels)])[0].dnf
    if out.suffix == ".npy":
        np.save(out, feature)
    elif detector.bundle.manifest.dnf.quantise:
        Image.fromarray(saved_picture(feature)).save(out)
    else:
        Image.fromarray(dnf_picture(feature)).save(out)
    click.echo(f"{out}: {feature.shape}, mean {feature.mean():.4f}, deviation {feature.std():.4f}")


@main.command()
@click.argument("bundle")
@click.option("--json", "as_json", is_flag=True, help="The manifest as one object.")
def inspect(bundle: str, *, as_json: bool) -> None:
    """Show a bundle's manifest, its verified digests and its figures."""
    with _plain_errors():
        found = resolve(bundle)
    manifest = found.manifest.model_dump(mode="json")
    if as_json:
        click.echo(json.dumps(manifest | {"digest": found.digest}, indent=2))
        return
    console = Console()
    console.print(f"[bold]{_title(found)}[/], created {found.manifest.created}\ndigest {found.digest}")
    for section in ("preprocessing", "dnf", "unet", "classifier", "calibration", "thresholds", "provenance"):
        console.print(f"{section:<15}{_inline(manifest[section])}", soft_wrap=True, highlight=False)
    files = Table("File", "Bytes", "SHA-256 (verified)")
    for name, digest in found.manifest.files.items():
        files.add_row(name, f"{(found.folder / name).stat().st_size:,}", digest)
    console.print(files)
    for name, values in manifest["figures"].items():
        console.print(f"{name:<15}{_inline(values)}", soft_wrap=True, highlight=False)


@main.command()
@click.option("--ddim", required=True, type=_existing, help="State dict in the DDIM authors' naming.")
@click.option("--unet-config", required=True, type=_existing, help="Its configuration, as JSON.")
@click.option("--classifier", required=True, type=_existing, help='State dict, or {"model": state dict}.')
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option("--name", help="The bundle's name; the folder's if not given.")
def convert(ddim: Path, unet_config: Path, classifier: Path, out: Path, name: str | None) -> None:
    """Make a bundle from the paper's checkpoints, with the paper's preprocessing and quantisation."""
    from detector.networks.conversion import convert as convert_checkpoints

    with _plain_errors():
        bundle = convert_checkpoints(ddim, unet_config, classifier, out, name=name)
    click.echo(f"{bundle.folder}: {_title(bundle)}, digest {bundle.digest}")


def _load(bundle: str, device: str, dtype: "Dtype") -> "Detector":
    from detector.detector import Detector

    with _plain_errors():
        return Detector.load(bundle, device=device, dtype=dtype)


@contextmanager
def _plain_errors() -> Iterator[None]:
    try:
        yield
    except BundleError as error:
        raise click.UsageError(f"{error.reason}: {error}") from error


def _title(bundle: Bundle) -> str:
    return f"{bundle.manifest.name} {bundle.manifest.version}"


def _inline(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _record(result: "CheckedFile | RejectedFile") -> dict[str, Any]:
    from detector.cli.checking import RejectedFile

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


def _add_row(table: Table, record: dict[str, Any]) -> None:
    if "rejected" in record:
        table.add_row(record["path"], f"[magenta]rejected: {record['rejected']}[/]", "", "", "")
        return
    verdict = cast("str", record["verdict"])
    table.add_row(
        record["path"],
        f"[{_COLOURS[verdict]}]{verdict}[/]",
        f"{record['score']:.3f}",
        f"{record['logit']:+.2f}",
        f"{record['width']} x {record['height']}",
    )


def _write_thumbnail(folder: Path, index: int, result: "CheckedFile | RejectedFile") -> None:
    from detector.cli.checking import RejectedFile
    from detector.images.thumbnail import dnf_thumbnail

    if isinstance(result, RejectedFile):
        return
    folder.mkdir(parents=True, exist_ok=True)
    # Files of one name in several folders must not overwrite each other.
    (folder / f"{index:05d}-{result.path.stem}.png").write_bytes(dnf_thumbnail(result.finding.dnf))


if __name__ == "__main__":
    main()
