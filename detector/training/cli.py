"""dnf-detector train and evaluate."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

_Command = TypeVar("_Command", bound=Callable[..., Any])

_folder = click.Path(path_type=Path, file_okay=False)
_corpus = click.argument("corpus", type=click.Path(exists=True, path_type=Path, file_okay=False))
_split = click.option("--split", default="train", show_default=True, help="Rows of manifest.csv to use.")
_minutes = click.option("--minutes", type=click.FloatRange(min=0.01), default=60.0, show_default=True)
_seed = click.option("--seed", type=int, default=1, show_default=True)


def _size(default: int) -> Callable[[_Command], _Command]:
    kind = click.IntRange(32, 512)
    return click.option("--size", type=kind, default=default, show_default=True, help="Pixels of a crop.")


def _batch(default: int) -> Callable[[_Command], _Command]:
    return click.option("--batch", type=click.IntRange(2, 1024), default=default, show_default=True)


def _channels(text: str) -> tuple[int, ...]:
    try:
        channels = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise click.UsageError("--channels takes numbers with commas between them") from error
    if any(number <= 0 or number % 16 for number in channels):
        raise click.UsageError("--channels takes multiples of 16")
    return channels


@click.group()
def train() -> None:
    """Train a detector on a corpus: real/..., generated/FAMILY/..., or a manifest.csv."""


@train.command()
@_corpus
@click.option("--out", required=True, type=_folder, help="A diffusers folder; training resumes there.")
@click.option(
    "--channels", default="32,64,96", show_default=True, help="By level; multiples of 16, from the finest."
)
@_size(64)
@_batch(24)
@_split
@_minutes
@_seed
def unet(
    corpus: Path, *, out: Path, channels: str, size: int, batch: int, split: str, minutes: float, seed: int
) -> None:
    """Train a small diffusion U-Net on the corpus's photographs alone."""
    from detector.training.corpus import CorpusRejected, grouped_split, read_corpus
    from detector.training.unet import UnetTraining, train_unet

    try:
        samples, _ = grouped_split(read_corpus(corpus, split))
    except CorpusRejected as error:
        raise click.UsageError(str(error)) from error
    recipe = UnetTraining(_channels(channels), size, batch, minutes=minutes, seed=seed)
    train_unet(samples, out, recipe)


@train.command()
@_corpus
@click.option("--unet", "unet_folder", required=True, help="A diffusers folder or hub id.")
@click.option("--work", required=True, type=_folder, help="Checkpoints; training resumes there.")
@click.option("--out", required=True, type=_folder, help="The bundle.")
@click.option("--name", default="dnf", show_default=True)
@click.option("--version", default="1", show_default=True)
@_size(128)
@_batch(32)
@_split
@_minutes
@_seed
def classifier(
    corpus: Path,
    *,
    unet_folder: str,
    work: Path,
    out: Path,
    name: str,
    version: str,
    size: int,
    batch: int,
    split: str,
    minutes: float,
    seed: int,
) -> None:
    """Train the ResNet on the U-Net's feature and write a calibrated bundle."""
    from detector.training.assembly import assemble
    from detector.training.classifier import ClassifierTraining, train_classifier
    from detector.training.corpus import CorpusRejected, grouped_split, read_corpus
    from detector.unet import UnetRejected, load_unet

    recipe = ClassifierTraining(size=size, batch=batch, minutes=minutes, seed=seed)
    try:
        training, validation = grouped_split(read_corpus(corpus, split))
        network = load_unet(unet_folder)
    except (CorpusRejected, UnetRejected) as error:
        raise click.UsageError(str(error)) from error
    best = train_classifier(network, training, validation, work, recipe)
    bundle = assemble(
        network,
        best,
        validation,
        out,
        recipe,
        name=name,
        version=version,
        provenance={
            "corpus_split": split,
            "training_pictures": len(training),
            "validation_pictures": len(validation),
            "classifier_minutes": minutes,
            "seed": seed,
        },
    )
    click.echo(f"{bundle.folder}: digest {bundle.digest}")


@click.command()
@click.argument("bundle")
@_corpus
@click.option("--split", default=None, help="Rows of manifest.csv to use; all if not given.")
@click.option("--device", default="auto", show_default=True)
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto")
@click.option(
    "--control",
    type=click.Choice(["as_is", "alike", "swapped"]),
    default="as_is",
    show_default=True,
    help="alike: all re-encoded as JPEG 90; swapped: reals lossless, generated as JPEG 85.",
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures as JSON.")
@click.option("--record", metavar="NAME", help="Store the overall figures in the bundle's manifest.")
def evaluate(
    bundle: str,
    corpus: Path,
    *,
    split: str | None,
    device: str,
    dtype: str,
    control: str,
    out: Path | None,
    record: str | None,
) -> None:
    """Measure a bundle on a labelled corpus, per family and over all."""
    from detector.bundle import BundleError, record_figures
    from detector.detector import Detector
    from detector.evaluation import family_figures, figures, score_samples
    from detector.training.corpus import CorpusRejected, read_corpus

    try:
        samples = read_corpus(corpus, split)
        detector = Detector.load(bundle, device=device, dtype=dtype)  # type: ignore[arg-type]
    except (CorpusRejected, BundleError) as error:
        raise click.UsageError(str(error)) from error
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("Scoring", total=len(samples))
        scored = score_samples(
            detector,
            samples,
            control=control,  # type: ignore[arg-type]
            progress=lambda count: progress.advance(task, count),
        )
    cut = detector.bundle.manifest.thresholds.generated_from
    overall = figures(scored, cut)
    families = family_figures(scored, cut)
    table = Table(
        "Family", "Real", "Generated", "AUROC", "95 %", "AP", "Bal. acc.", "TPR@5%", "Found", "Accused"
    )
    for family, row in {**families, "all": overall}.items():
        table.add_row(
            family,
            str(row.real),
            str(row.generated),
            f"{row.auroc:.3f}",
            f"{row.auroc_low:.3f}-{row.auroc_high:.3f}",
            f"{row.average_precision:.3f}",
            f"{row.balanced_accuracy:.3f}",
            f"{row.tpr_at_fpr_5:.3f}",
            f"{row.generated_found:.3f}",
            f"{row.real_accused:.3f}",
        )
    # A file or pipe has no width of its own to squeeze the columns into.
    Console(width=None if sys.stdout.isatty() else 130).print(table)
    if out:
        listed = {family: row.rounded() for family, row in families.items()}
        out.write_text(json.dumps({"all": overall.rounded(), "families": listed}, indent=2) + "\n")
    if record:
        recorded = record_figures(detector.bundle, record, overall.rounded())
        click.echo(f"{recorded.folder}: {record} recorded, digest {recorded.digest}")
