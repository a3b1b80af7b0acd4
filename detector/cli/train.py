"""dnf-detector train."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from detector.bundle.manifest import FEATURES, needs_unet
from detector.corpus.corpus import LAYOUTS

if TYPE_CHECKING:
    from detector.bundle.files import Bundle
    from detector.bundle.manifest import Feature
    from detector.corpus.corpus import Sample, TrainingSplit
    from detector.networks.resnet import ResNet
    from detector.networks.unet import Unet
    from detector.training.recipe import ClassifierTraining
    from detector.training.unet import UnetTraining

_Command = TypeVar("_Command", bound=Callable[..., Any])

# Chosen, not measured: the default bundle's two trainings took about this share of each other.
_UNET_SHARE = 0.4


@dataclass(frozen=True)
class _Start:
    """A trained network to go on from, and the bundle that it is from, for the record."""

    network: "ResNet"
    bundle: str


_folder = click.Path(path_type=Path, file_okay=False)
_corpus = click.argument("corpus", type=click.Path(exists=True, path_type=Path, file_okay=False))


def _options(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_read = _options(
    click.option("--split", default="train", show_default=True, help="Of a corpus that has splits."),
    click.option("--layout", type=click.Choice(LAYOUTS), default="auto", show_default=True),
)
_trained = _options(
    _read,
    click.option("--seed", type=int, default=1, show_default=True),
    click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N."),
    click.option(
        "--loaders",
        type=click.IntRange(1, 64),
        default=1,
        show_default=True,
        help="Processes that draw crops.",
    ),
)
_bundle = _options(
    click.option("--out", required=True, type=_folder, help="The bundle."),
    click.option("--name", default="dnf", show_default=True),
    click.option("--version", default="1", show_default=True),
)
_hold_out = click.option("--hold-out", multiple=True, metavar="FAMILY", help="Never trained on; repeatable.")
_judged = _options(
    _hold_out,
    click.option("--bank", type=click.IntRange(min=0), default=0, help="Crops kept with their features."),
    click.option("--size", type=click.IntRange(32, 512), default=128, show_default=True, help="Of a crop."),
    click.option("--views", type=click.Choice(["1", "4", "9", "16"]), default="9", show_default=True),
    click.option("--batch", type=click.IntRange(2, 1024), default=32, show_default=True),
    click.option("--timesteps", default="0", show_default=True, help="Of the feature, commas between."),
    click.option("--learning-rate", type=click.FloatRange(0, 1, min_open=True), help="The highest; 0.001."),
    click.option("--preset", type=click.Choice(["own", "paper"]), default="own", show_default=True),
)


def _budget(default: float) -> Callable[[_Command], _Command]:
    return _options(
        click.option("--minutes", type=click.FloatRange(min=0.01), default=default, show_default=True),
        click.option("--max-steps", type=click.IntRange(min=1), help="Instead of minutes: reproducible."),
    )


def _numbers(text: str, name: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise click.UsageError(f"--{name} takes numbers with commas between them") from error


def _channels(text: str) -> tuple[int, ...]:
    channels = _numbers(text, "channels")
    if any(number <= 0 or number % 16 for number in channels):
        raise click.UsageError("--channels takes multiples of 16")
    return channels


@click.group()
def train() -> None:
    """Train a detector on a corpus: real/..., generated/FAMILY/..., a manifest.csv, or a known layout."""


@train.command()
@_corpus
@click.option("--out", required=True, type=_folder, help="A diffusers folder; training resumes there.")
@click.option("--channels", default="16,32,64,96", show_default=True, help="By level, from the finest.")
@click.option("--size", type=click.IntRange(32, 512), default=64, show_default=True, help="Of a crop.")
@click.option("--batch", type=click.IntRange(1, 1024), default=32, show_default=True)
@_hold_out
@_budget(60)
@_trained
def unet(corpus: Path, *, out: Path, channels: str, **options: Any) -> None:
    """Train a small diffusion U-Net on the corpus's photographs alone."""
    recipe = _unet_recipe(channels, options, size=options["size"], batch=options["batch"])
    _train_unet(_samples(corpus, options).training, out, recipe)


@train.command()
@_corpus
@click.option("--unet", "unet_folder", help="A diffusers folder or hub id; rgb and npr need none.")
@click.option("--work", required=True, type=_folder, help="Checkpoints; training resumes there.")
@click.option("--bank-folder", type=_folder, help="Where the bank is; below the work folder if not given.")
@click.option(
    "--start-from", metavar="BUNDLE", help="Go on from its network, instead of from random weights."
)
@click.option("--feature", type=click.Choice(FEATURES), default="dnf", show_default=True)
@_bundle
@_judged
@_budget(60)
@_trained
def classifier(
    corpus: Path,
    *,
    unet_folder: str | None,
    work: Path,
    feature: "Feature",
    start_from: str | None,
    **options: Any,
) -> None:
    """Train the ResNet on the U-Net's feature and write a calibrated bundle."""
    from detector.networks.unet import UnetRejectedError, load_unet

    if needs_unet(feature) != (unet_folder is not None):
        raise click.UsageError("a feature with dnf, and no other, needs --unet")
    samples = _samples(corpus, options)
    try:
        network = load_unet(unet_folder) if unet_folder else None
    except UnetRejectedError as error:
        raise click.UsageError(str(error)) from error
    recipe = _recipe(feature, options)
    start = _start(start_from, recipe) if start_from else None
    bundle = _train_classifier(network, samples, work, recipe, options, start=start)
    click.echo(f"{bundle.folder}: digest {bundle.digest}")


@train.command(name="all")
@_corpus
@click.option("--work", type=_folder, help="Checkpoints; training resumes there. OUT-work if not given.")
@click.option("--channels", default="16,32,64,96", show_default=True, help="Of the U-Net.")
@click.option(
    "--feature",
    type=click.Choice([feature for feature in FEATURES if needs_unet(feature)]),
    default="dnf",
    show_default=True,
)
@_bundle
@_judged
@_budget(60)
@_trained
def whole(corpus: Path, *, work: Path | None, channels: str, **options: Any) -> None:
    """Train the U-Net, then the ResNet on its feature, and write a calibrated bundle."""
    out: Path = options["out"]
    work = work or out.with_name(f"{out.name}-work")
    minutes: float = options["minutes"]
    recipe = _recipe(options["feature"], options | {"minutes": minutes * (1 - _UNET_SHARE)})
    samples = _samples(corpus, options)
    unet_recipe = _unet_recipe(channels, options | {"minutes": minutes * _UNET_SHARE})
    network = _train_unet(samples.training, work / "unet", unet_recipe)
    bundle = _train_classifier(network, samples, work / "classifier", recipe, options)
    click.echo(f"{bundle.folder}: digest {bundle.digest}")


@train.command()
@_corpus
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLE...")
@_bundle
@click.option("--hold-out", multiple=True, required=True, metavar="FAMILY", help="As for the bundles.")
@_read
def fuse(corpus: Path, *, bundles: tuple[str, ...], **options: Any) -> None:
    """Put classifiers of several features side by side, weighted on held-out families.

    The bundles' features are dnf and one or both of npr and rgb, in this order.
    """
    from detector.bundle.files import BundleError, resolve
    from detector.training.assembly import FusionRejectedError
    from detector.training.assembly import fuse as fuse_bundles

    calibration = _samples(corpus, options).validation
    named = {name: options[name] for name in ("name", "version")}
    try:
        bundle = fuse_bundles([resolve(name) for name in bundles], calibration, options["out"], **named)
    except (BundleError, FusionRejectedError) as error:
        raise click.UsageError(str(error)) from error
    click.echo(f"{bundle.folder}: digest {bundle.digest}")


def _samples(corpus: Path, options: dict[str, Any]) -> "TrainingSplit":
    from detector.corpus.corpus import CorpusRejectedError, read_corpus, readable, training_split

    try:
        samples, _ = readable(read_corpus(corpus, options["split"], options["layout"]))
        return training_split(samples, options.get("hold_out", ()))
    except CorpusRejectedError as error:
        raise click.UsageError(str(error)) from error


def _need_both_classes(samples: "TrainingSplit") -> None:
    """Find out before hours of training, not after them, that nothing can be chosen or calibrated."""
    for name, part in (("train on", samples.training), ("validate on", samples.validation)):
        if {sample.generated for sample in part} != {True, False}:
            raise click.UsageError(
                f"there are no pictures of both classes to {name}; the corpus is too small"
            )


def _unet_recipe(channels: str, options: dict[str, Any], **more: int) -> "UnetTraining":
    from detector.training.unet import UnetTraining

    shared = ("minutes", "max_steps", "seed", "device", "loaders")
    numbers: dict[str, Any] = {name: options[name] for name in shared} | more
    return UnetTraining(_channels(channels), **numbers)


def _train_unet(training: list["Sample"], folder: Path, recipe: "UnetTraining") -> "Unet":
    from detector.training.unet import train_unet

    try:
        return train_unet(training, folder, recipe)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _train_classifier(
    network: "Unet | None",
    samples: "TrainingSplit",
    work: Path,
    recipe: "ClassifierTraining",
    options: dict[str, Any],
    *,
    start: "_Start | None" = None,
) -> "Bundle":
    from detector.training.assembly import assemble
    from detector.training.classifier import train_classifier

    _need_both_classes(samples)
    try:
        trained = train_classifier(
            network,
            samples.training,
            samples.validation,
            work,
            recipe,
            bank=options.get("bank_folder"),
            start=start.network if start else None,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
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
            "held_out_families": list(options["hold_out"]),
            "classifier_steps": trained.steps,
            "classifier_batch": recipe.batch,
            "classifier_bank": recipe.bank,
            "validation_auroc": round(trained.validation_auroc, 4),
            "seed": recipe.seed,
            **({"started_from": start.bundle} if start else {}),
        },
    )


def _start(bundle: str, recipe: "ClassifierTraining") -> "_Start":
    from detector.bundle.files import BundleError, resolve
    from detector.training.warm_start import CheckpointRejectedError, trained_network

    try:
        found = resolve(bundle)
        network = trained_network(found, recipe)
    except (BundleError, CheckpointRejectedError) as error:
        raise click.UsageError(str(error)) from error
    return _Start(network, f"{found.manifest.name} {found.manifest.version}, digest {found.digest}")


def _recipe(feature: "Feature", options: dict[str, Any]) -> "ClassifierTraining":
    from detector.bundle.manifest import DnfConfig
    from detector.training.recipe import ClassifierTraining, paper_recipe

    timesteps = _numbers(options["timesteps"], "timesteps")
    if any(not 0 <= t <= 999 for t in timesteps):  # noqa: PLR2004 - the schedule's last
        raise click.UsageError("--timesteps are in 0..999")
    shared = ("size", "batch", "bank", "minutes", "max_steps", "seed", "device", "loaders")
    recipe = ClassifierTraining(
        feature=feature,
        dnf=DnfConfig(timesteps=timesteps),
        views=int(options["views"]),
        **{name: options[name] for name in shared},
    )
    if options["learning_rate"] is not None:
        recipe = replace(recipe, learning_rate=options["learning_rate"])
    if options["preset"] == "paper":
        recipe = paper_recipe(recipe)
    if recipe.batch % 2:
        raise click.UsageError("--batch is even: half of a batch is of each class")
    if 0 < recipe.bank < recipe.batch:
        raise click.UsageError(f"--bank holds at least a batch, {recipe.batch} crops")
    return recipe
