"""dnf-detector train."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from detector.bundle.files import Bundle, resolve
from detector.bundle.manifest import FEATURES, DnfConfig, Feature, needs_unet
from detector.cli.errors import WrongUsageError, plain_errors
from detector.cli.sections import SectionedCommand, section
from detector.corpus.corpus import (
    LAYOUTS,
    CorpusRejectedError,
    TrainingSplit,
    read_corpus,
    readable,
    training_split,
)
from detector.terminal import echo

if TYPE_CHECKING:
    from detector.networks.resnet import ResNet
    from detector.networks.unet import Unet
    from detector.training.recipe import ClassifierRecipe, UnetRecipe

# Share of `train all` for the U-Net, as in the training of the default bundle.
_UNET_SHARE = 0.4
_LAST_TIMESTEP = 999

_folder = click.Path(path_type=Path, file_okay=False)
_corpus = click.argument("corpus", type=click.Path(exists=True, path_type=Path, file_okay=False))


def _size(default: int) -> Callable[[Any], Any]:
    return click.option(
        "--size", type=click.IntRange(32, 512), default=default, help="Side of a crop in pixels."
    )


def _batch(smallest: int) -> Callable[[Any], Any]:
    return click.option(
        "--batch", type=click.IntRange(smallest, 1024), default=32, help="Pictures in a batch."
    )


_layout = click.option(
    "--layout", type=click.Choice(LAYOUTS), default="auto", help="How the corpus is laid out."
)
_split = click.option("--split", default="train", help="Split to train on, if it has any.")
_hold_out = click.option(
    "--hold-out", multiple=True, metavar="FAMILY", help="Exclude this family from training; may be repeated."
)
_bundle_out = (
    click.option("--out", required=True, type=_folder, help="Folder of the bundle."),
    click.option("--name", default="dnf", help="Name of the bundle."),
    click.option("--version", default="1", help="Version of the bundle."),
)
_bank_folder = click.option("--bank-folder", type=_folder, help="Folder of the bank; default: below --work.")
_channels = click.option(
    "--channels", default="16,32,64,96", help="U-Net channels of each level, finest first."
)
_timesteps = click.option("--timesteps", default="0", help="Timesteps of the noise feature, comma-separated.")
_views = click.option(
    "--views",
    type=click.Choice(["1", "4", "9", "16"]),
    default="9",
    help="Views of a picture that the bundle scores.",
)
_budget = (
    click.option("--minutes", type=click.FloatRange(min=0.01), default=60, help="Time budget."),
    click.option(
        "--max-steps", type=click.IntRange(min=1), help="Step budget, instead of minutes: reproducible."
    ),
)
_seed = click.option("--seed", type=int, default=1, help="Seed of all random draws.")
_classifier_training = (
    click.option(
        "--preset",
        type=click.Choice(["own", "paper"]),
        default="own",
        help="paper replaces network, crops, batch and learning rate by the published ones.",
    ),
    *_budget,
    _batch(2),
    click.option(
        "--learning-rate", type=click.FloatRange(0, 1, min_open=True), help="Peak learning rate; 0.001."
    ),
    click.option(
        "--bank",
        type=click.IntRange(min=0),
        default=0,
        help="Crops drawn once and stored with their features; 0: new ones at each step.",
    ),
    _seed,
)
_machine = (
    click.option("--device", default="cpu", help="cpu, cuda or cuda:N."),
    click.option("--loaders", type=click.IntRange(1, 64), default=1, help="Processes that draw crops."),
)


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
@_corpus
@section("Corpus", _layout, _split, _hold_out)
@section(
    "Output", click.option("--out", required=True, type=_folder, help="Diffusers folder, also to resume.")
)
@section("Network", _channels, _size(64))
@section("Training", *_budget, _batch(1), _seed)
@section("Machine", *_machine)
def unet(corpus: Path, *, out: Path, **options: Any) -> None:
    """Train a small diffusion U-Net on the photographs of a corpus."""
    recipe = _unet_recipe(options, size=options["size"], batch=options["batch"])
    _train_unet(_samples(corpus, options), out, recipe)


@train.command(
    cls=SectionedCommand,
    epilog="""\b
Examples:
  dnf-detector train classifier CORPUS --unet unet --work work --out mine
  dnf-detector train classifier CORPUS --feature npr --fine-tune default --work work --out mine
""",
)
@_corpus
@section("Corpus", _layout, _split, _hold_out)
@section(
    "Output",
    *_bundle_out,
    click.option("--work", required=True, type=_folder, help="Folder of the checkpoint, also to resume."),
    _bank_folder,
)
@section(
    "Network",
    click.option("--feature", type=click.Choice(FEATURES), default="dnf", help="Classifier's input."),
    click.option("--unet", "unet_folder", help="Diffusers folder or hub id; not for rgb and npr."),
    click.option(
        "--fine-tune",
        metavar="BUNDLE",
        help="Start from the network of this bundle, not from random weights.",
    ),
    _timesteps,
    _size(128),
    _views,
)
@section("Training", *_classifier_training)
@section("Machine", *_machine)
def classifier(
    corpus: Path,
    *,
    unet_folder: str | None,
    work: Path,
    feature: Feature,
    fine_tune: str | None,
    **options: Any,
) -> None:
    """Train the ResNet on a feature and write a calibrated bundle."""
    from detector.networks.unet import UnetRejectedError, load_unet

    if needs_unet(feature) != (unet_folder is not None):
        raise WrongUsageError("a feature with dnf, and no other, needs --unet")
    samples = _samples(corpus, options)
    try:
        network = load_unet(unet_folder) if unet_folder else None
    except UnetRejectedError as error:
        raise WrongUsageError(str(error)) from error
    recipe = _classifier_recipe(feature, options)
    pretrained = _pretrained(fine_tune, recipe) if fine_tune else None
    bundle = _train_classifier(network, samples, work, recipe, options, pretrained=pretrained)
    echo(f"{bundle.folder}: digest {bundle.digest}")


@train.command(
    name="all", cls=SectionedCommand, epilog="Example: dnf-detector train all CORPUS --out mine --minutes 600"
)
@_corpus
@section("Corpus", _layout, _split, _hold_out)
@section(
    "Output",
    *_bundle_out,
    click.option(
        "--work", type=_folder, help="Folder of the checkpoints, also to resume; default: OUT-work."
    ),
)
@section(
    "Network",
    click.option(
        "--feature",
        type=click.Choice([feature for feature in FEATURES if needs_unet(feature)]),
        default="dnf",
        help="Classifier's input.",
    ),
    _channels,
    _timesteps,
    _size(128),
    _views,
)
@section("Training", *_classifier_training)
@section("Machine", *_machine)
def whole(corpus: Path, *, work: Path | None, **options: Any) -> None:
    """Train the U-Net, then the ResNet on its feature, and write a calibrated bundle."""
    out: Path = options["out"]
    work = work or out.with_name(f"{out.name}-work")
    minutes: float = options["minutes"]
    recipe = _classifier_recipe(options["feature"], options | {"minutes": minutes * (1 - _UNET_SHARE)})
    samples = _samples(corpus, options)
    unet_recipe = _unet_recipe(options | {"minutes": minutes * _UNET_SHARE})
    network = _train_unet(samples, work / "unet", unet_recipe)
    bundle = _train_classifier(network, samples, work / "classifier", recipe, options)
    echo(f"{bundle.folder}: digest {bundle.digest}")


@train.command(
    cls=SectionedCommand,
    epilog="Example: dnf-detector train fuse CORPUS dnf rgb --out mine --hold-out GLIDE --hold-out COCO",
)
@_corpus
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLE...")
@section(
    "Corpus",
    _layout,
    _split,
    click.option(
        "--hold-out", multiple=True, required=True, metavar="FAMILY", help="As in the bundles' training."
    ),
)
@section("Output", *_bundle_out)
def fuse(corpus: Path, *, bundles: tuple[str, ...], **options: Any) -> None:
    """Combine the classifiers of several bundles into an ensemble, weighted on held-out families.

    The bundles' features are dnf and one or both of npr and rgb, in this order.
    """
    from detector.training.assembly import FusionRejectedError
    from detector.training.assembly import fuse as fuse_bundles

    calibration = _samples(corpus, options).validation
    named = {name: options[name] for name in ("name", "version")}
    try:
        with plain_errors():
            bundle = fuse_bundles([resolve(name) for name in bundles], calibration, options["out"], **named)
    except FusionRejectedError as error:
        raise WrongUsageError(str(error)) from error
    echo(f"{bundle.folder}: digest {bundle.digest}")


def _samples(corpus: Path, options: dict[str, Any]) -> TrainingSplit:
    try:
        samples, _ = readable(read_corpus(corpus, options["split"], options["layout"]))
        return training_split(samples, options["hold_out"])
    except CorpusRejectedError as error:
        raise WrongUsageError(str(error)) from error


def _require_both_classes(samples: TrainingSplit) -> None:
    """Report before hours of training, not after them, that a class is missing."""
    for name, part in (("train on", samples.training), ("validate on", samples.validation)):
        if {sample.generated for sample in part} != {True, False}:
            raise WrongUsageError(f"there are no pictures of both classes to {name}; the corpus is too small")


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise WrongUsageError(f"{option} takes comma-separated numbers") from error


def _unet_recipe(options: dict[str, Any], **more: int) -> "UnetRecipe":
    from detector.training.recipe import UnetRecipe

    channels = _numbers("--channels", options["channels"])
    if any(number <= 0 or number % 16 for number in channels):
        raise WrongUsageError("--channels takes multiples of 16")
    shared = ("minutes", "max_steps", "seed", "device", "loaders")
    return UnetRecipe(channels=channels, **{name: options[name] for name in shared} | more)


def _train_unet(samples: TrainingSplit, folder: Path, recipe: "UnetRecipe") -> "Unet":
    from detector.training.unet import train_unet

    try:
        return train_unet(samples.training, folder, recipe)
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
            "held_out_families": list(options["hold_out"]),
            "classifier_steps": trained.steps,
            "classifier_batch": recipe.batch,
            "classifier_bank": recipe.bank,
            "validation_auroc": round(trained.validation_auroc, 4),
            "seed": recipe.seed,
            **({"fine_tuned_from": pretrained.bundle} if pretrained else {}),
        },
    )


def _pretrained(reference: str, recipe: "ClassifierRecipe") -> _Pretrained:
    from detector.training.checkpoint import CheckpointRejectedError, pretrained_network

    try:
        with plain_errors():
            bundle = resolve(reference)
        network = pretrained_network(bundle, recipe)
    except CheckpointRejectedError as error:
        raise WrongUsageError(str(error)) from error
    return _Pretrained(network, f"{bundle.manifest.name} {bundle.manifest.version}, digest {bundle.digest}")


def _classifier_recipe(feature: Feature, options: dict[str, Any]) -> "ClassifierRecipe":
    from detector.training.recipe import ClassifierRecipe, paper_recipe

    timesteps = _numbers("--timesteps", options["timesteps"])
    if any(not 0 <= t <= _LAST_TIMESTEP for t in timesteps):
        raise WrongUsageError(f"--timesteps are in 0..{_LAST_TIMESTEP}")
    shared = ("size", "batch", "bank", "minutes", "max_steps", "seed", "device", "loaders")
    recipe = ClassifierRecipe(
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
        raise WrongUsageError("--batch must be even: half of a batch is of each class")
    if 0 < recipe.bank < recipe.batch:
        raise WrongUsageError(f"--bank must hold at least a batch, {recipe.batch} crops")
    return recipe
