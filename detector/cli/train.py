"""dnf-detector train."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from detector.bundle.files import Bundle, resolve
from detector.bundle.manifest import FEATURES, Feature, needs_unet
from detector.cli.errors import WrongUsageError, plain_errors
from detector.cli.sections import SectionedCommand, section
from detector.cli.training_options import (
    BUDGET,
    BUNDLE_OUT,
    CLASSIFIER_TRAINING,
    FOLDER,
    MACHINE,
    bank_folder_option,
    batch_option,
    channels_option,
    classifier_recipe,
    corpus_argument,
    estimator_of,
    feature_option,
    hold_out_option,
    layout_option,
    numbers_of,
    readable_samples,
    seed_option,
    size_option,
    split_option,
    timesteps_option,
    unet_option,
    views_option,
    width_option,
)
from detector.corpus.corpus import CorpusRejectedError, TrainingSplit, training_split
from detector.corpus.origins import Origins
from detector.terminal import Console, echo

if TYPE_CHECKING:
    from detector.networks.resnet import ResNet
    from detector.networks.unet import Unet
    from detector.training.recipe import ClassifierRecipe, UnetRecipe

# Share of `train all` for the U-Net, as in the training of the default bundle.
_UNET_SHARE = 0.4
_PIPE_WIDTH = 120


@dataclass(frozen=True)
class _Pretrained:
    """A network to fine-tune, and the bundle it comes from, for the provenance."""

    network: "ResNet"
    bundle: str


@click.group(
    context_settings={"show_default": True}, epilog="Example: dnf-detector train all CORPUS --out mine"
)
def train() -> None:
    """Train a detector on a corpus: real/..., generated/FAMILY/..., a manifest.csv, or a published layout."""


@train.command(
    cls=SectionedCommand, epilog="Example: dnf-detector train unet CORPUS --out unet --minutes 240"
)
@corpus_argument
@section("Corpus", layout_option, split_option, hold_out_option)
@section(
    "Output", click.option("--out", required=True, type=FOLDER, help="Diffusers folder, also to resume.")
)
@section(
    "Network",
    channels_option,
    click.option(
        "--patch",
        type=click.IntRange(1, 2),
        default=1,
        help="2: patches of 2 x 2 pixels at half the resolution, which costs less.",
    ),
    size_option(64),
)
@section(
    "Training",
    *BUDGET,
    batch_option(1),
    click.option(
        "--low-share",
        type=click.FloatRange(0, 1),
        default=0.7,
        help="Share of the steps that train on the 100 timesteps with the least noise.",
    ),
    seed_option,
)
@section("Machine", *MACHINE)
def unet(corpus: Path, *, out: Path, **options: Any) -> None:
    """Train a small diffusion U-Net on the photographs of a corpus."""
    own = {name: options[name] for name in ("size", "batch", "patch", "low_share")}
    recipe = _unet_recipe(options, **own)
    _train_unet(_samples(corpus, options), out, recipe)


@train.command(
    cls=SectionedCommand,
    epilog="""\b
Examples:
  dnf-detector train classifier CORPUS --unet unet --work work --out mine
  dnf-detector train classifier CORPUS --feature npr --fine-tune default --work work --out mine
""",
)
@corpus_argument
@section("Corpus", layout_option, split_option, hold_out_option)
@section(
    "Output",
    *BUNDLE_OUT,
    click.option("--work", required=True, type=FOLDER, help="Folder of the checkpoint, also to resume."),
    bank_folder_option,
)
@section(
    "Network",
    feature_option,
    unet_option,
    click.option(
        "--fine-tune",
        metavar="BUNDLE",
        help="Start from the network of this bundle, not from random weights.",
    ),
    timesteps_option,
    width_option,
    size_option(128),
    views_option,
)
@section("Training", *CLASSIFIER_TRAINING)
@section("Machine", *MACHINE)
def classifier(
    corpus: Path,
    *,
    unet_folder: str | None,
    work: Path,
    feature: Feature,
    fine_tune: str | None,
    **options: Any,
) -> None:
    """Train a classifier on a feature and write a calibrated bundle."""
    network = estimator_of(feature, unet_folder)
    samples = _samples(corpus, options)
    recipe = classifier_recipe(feature, options)
    pretrained = _pretrained(fine_tune, recipe) if fine_tune else None
    bundle = _train_classifier(network, samples, work, recipe, options, pretrained=pretrained)
    echo(f"{bundle.folder}: digest {bundle.digest}")


@train.command(
    name="all", cls=SectionedCommand, epilog="Example: dnf-detector train all CORPUS --out mine --minutes 600"
)
@corpus_argument
@section("Corpus", layout_option, split_option, hold_out_option)
@section(
    "Output",
    *BUNDLE_OUT,
    click.option("--work", type=FOLDER, help="Folder of the checkpoints, also to resume; default: OUT-work."),
)
@section(
    "Network",
    click.option(
        "--feature",
        type=click.Choice([feature for feature in FEATURES if needs_unet(feature)]),
        default="dnf",
        help="Classifier's input.",
    ),
    channels_option,
    timesteps_option,
    width_option,
    size_option(128),
    views_option,
)
@section("Training", *CLASSIFIER_TRAINING)
@section("Machine", *MACHINE)
def whole(corpus: Path, *, work: Path | None, **options: Any) -> None:
    """Train the U-Net, then a classifier on its feature, and write a calibrated bundle."""
    out: Path = options["out"]
    work = work or out.with_name(f"{out.name}-work")
    minutes: float = options["minutes"]
    recipe = classifier_recipe(options["feature"], options | {"minutes": minutes * (1 - _UNET_SHARE)})
    samples = _samples(corpus, options)
    unet_recipe = _unet_recipe(options | {"minutes": minutes * _UNET_SHARE})
    network = _train_unet(samples, work / "unet", unet_recipe)
    bundle = _train_classifier(network, samples, work / "classifier", recipe, options)
    echo(f"{bundle.folder}: digest {bundle.digest}")


@train.command(cls=SectionedCommand, epilog="Example: dnf-detector train fuse npr cooccurrences --out mine")
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLE...")
@section("Output", *BUNDLE_OUT)
def fuse(bundles: tuple[str, ...], **options: Any) -> None:
    """Combine the classifiers of several bundles: the mean of their calibrated log-odds.

    The bundles' features are dnf, npr and rgb, two or more in this order. Calibrate the ensemble afterwards.
    """
    from detector.training.assembly import FusionRejectedError
    from detector.training.assembly import fuse as fuse_bundles

    named = {name: options[name] for name in ("name", "version")}
    try:
        with plain_errors():
            bundle = fuse_bundles([resolve(name) for name in bundles], options["out"], **named)
    except FusionRejectedError as error:
        raise WrongUsageError(str(error)) from error
    echo(f"{bundle.folder}: digest {bundle.digest}")


@train.command(
    cls=SectionedCommand,
    epilog="Example: dnf-detector train calibrate mine --crossvalidation trials/npr",
)
@click.argument("bundle", metavar="FOLDER", type=click.Path(exists=True, path_type=Path, file_okay=False))
@click.option(
    "--crossvalidation",
    "folder",
    required=True,
    type=FOLDER,
    help="Folder of a finished cross-validation of the bundle's recipe.",
)
@click.option("--device", default="auto", help="auto, cpu, cuda or cuda:N.")
def calibrate(bundle: Path, *, folder: Path, device: str) -> None:
    """Fit calibration and thresholds of a bundle to pictures that the folds of a cross-validation never saw.

    At most 1 % of photographs are flagged, as uploaded and under every degradation of the quick evaluation,
    and at most 10 % of uploads are flagged or go to review. The bundle is changed in place.
    """
    from detector.crossvalidation import CrossvalidationError
    from detector.recalibration import recalibrate

    try:
        with plain_errors():
            conditions = recalibrate(resolve(bundle), folder, device=device)
            calibrated = resolve(bundle)
    except CrossvalidationError as error:
        raise WrongUsageError(str(error)) from error
    table = Table("Condition", "Photographs", "Review from", "Generated from")
    for each in conditions:
        review, generated = each.thresholds.review_from, each.thresholds.generated_from
        table.add_row(each.condition, str(each.photographs), f"{review:.3f}", f"{generated:.3f}")
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(table)
    echo(f"{calibrated.folder}: digest {calibrated.digest}")


def _samples(corpus: Path, options: dict[str, Any]) -> TrainingSplit:
    samples = readable_samples(corpus, options["splits"], options["layout"])
    try:
        return training_split(samples, options["hold_out"])
    except CorpusRejectedError as error:
        raise WrongUsageError(str(error)) from error


def _require_both_classes(samples: TrainingSplit) -> None:
    """Report before hours of training, not after them, that a class is missing."""
    for name, part in (("train on", samples.training), ("validate on", samples.validation)):
        if {sample.generated for sample in part} != {True, False}:
            raise WrongUsageError(f"there are no pictures of both classes to {name}; the corpus is too small")


def _unet_recipe(options: dict[str, Any], **more: float) -> "UnetRecipe":
    from detector.training.recipe import UnetRecipe

    channels = numbers_of("--channels", options["channels"])
    if any(number <= 0 or number % 16 for number in channels):
        raise WrongUsageError("--channels takes multiples of 16")
    shared = ("minutes", "max_steps", "seed", "device", "loaders")
    return UnetRecipe(channels=channels, **{name: options[name] for name in shared} | more)


def _train_unet(samples: TrainingSplit, folder: Path, recipe: "UnetRecipe") -> "Unet":
    from detector.training.unet import train_unet

    try:
        return train_unet(samples.training, folder, recipe, held_out=samples.validation)
    except ValueError as error:
        raise WrongUsageError(str(error)) from error


def _train_classifier(
    network: "Unet | None",
    samples: TrainingSplit,
    work: Path,
    recipe: "ClassifierRecipe",
    options: dict[str, Any],
    *,
    pretrained: _Pretrained | None = None,
) -> Bundle:
    from detector.training.assembly import assemble
    from detector.training.classifier import train_classifier

    _require_both_classes(samples)
    try:
        trained = train_classifier(
            network,
            samples.training,
            samples.validation,
            work,
            recipe,
            bank=options.get("bank_folder"),
            # As a cross-validation of the corpus does, so that the two share a bank.
            banked=[*samples.training, *samples.validation],
            initial=pretrained.network if pretrained else None,
        )
    except ValueError as error:
        raise WrongUsageError(str(error)) from error
    return assemble(
        network,
        trained.network,
        samples.validation,
        options["out"],
        recipe,
        name=options["name"],
        version=options["version"],
        provenance={
            "preset": options["preset"],
            "training_pictures": len(samples.training),
            "validation_pictures": len(samples.validation),
            "training_origins": Origins.of(samples.training).recorded(),
            "held_out_families": list(options["hold_out"]),
            **_amount(recipe, trained.steps),
            "chain": recipe.chain,
            "twins": list(recipe.twins),
            "validation_auroc": round(trained.validation_auroc, 4),
            "seed": recipe.seed,
            **({"fine_tuned_from": pretrained.bundle} if pretrained else {}),
        },
        left_out=trained.left_out,
    )


def _amount(recipe: "ClassifierRecipe", steps: int) -> dict[str, int]:
    """Return how much was trained, for the provenance."""
    if recipe.kind == "cooccurrences":
        return {"squares_of_each_picture": recipe.bank}
    return {
        "classifier_steps": steps,
        "classifier_batch": recipe.batch,
        "classifier_bank_crops": recipe.bank,
    }


def _pretrained(reference: str, recipe: "ClassifierRecipe") -> _Pretrained:
    from detector.training.checkpoint import CheckpointRejectedError, pretrained_network

    try:
        with plain_errors():
            bundle = resolve(reference)
        network = pretrained_network(bundle, recipe)
    except CheckpointRejectedError as error:
        raise WrongUsageError(str(error)) from error
    return _Pretrained(network, f"{bundle.manifest.name} {bundle.manifest.version}, digest {bundle.digest}")
