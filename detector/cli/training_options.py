"""Options that several commands of the training share, and the recipe that they describe."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from detector.bundle.manifest import FEATURES, DnfConfig, Feature, needs_unet
from detector.cli.errors import WrongUsageError
from detector.corpus.corpus import LAYOUTS, CorpusRejectedError, Layout, Sample, read_corpus, readable

if TYPE_CHECKING:
    from detector.networks.unet import Unet
    from detector.training.recipe import ClassifierRecipe

_LAST_TIMESTEP = 999

FOLDER = click.Path(path_type=Path, file_okay=False)
corpus_argument = click.argument("corpus", type=click.Path(exists=True, path_type=Path, file_okay=False))


def size_option(default: int) -> Callable[[Any], Any]:
    """Return the option for the side of a crop."""
    return click.option(
        "--size", type=click.IntRange(32, 512), default=default, help="Side of a crop in pixels."
    )


def batch_option(smallest: int) -> Callable[[Any], Any]:
    """Return the option for the size of a batch."""
    return click.option(
        "--batch", type=click.IntRange(smallest, 1024), default=32, help="Pictures in a batch."
    )


layout_option = click.option(
    "--layout", type=click.Choice(LAYOUTS), default="auto", help="How the corpus is laid out."
)
split_option = click.option(
    "--split", "splits", multiple=True, default=["train"], help="Split to train on, if any; may be repeated."
)
hold_out_option = click.option(
    "--hold-out", multiple=True, metavar="FAMILY", help="Exclude this family from training; may be repeated."
)
BUNDLE_OUT = (
    click.option("--out", required=True, type=FOLDER, help="Folder of the bundle."),
    click.option("--name", default="dnf", help="Name of the bundle."),
    click.option("--version", default="1", help="Version of the bundle."),
)
bank_folder_option = click.option(
    "--bank-folder", type=FOLDER, help="Folder of the bank; default: below --work."
)
channels_option = click.option(
    "--channels", default="16,32,64,96", help="U-Net channels of each level, finest first."
)
timesteps_option = click.option(
    "--timesteps", default="0", help="Timesteps of the noise feature, comma-separated."
)
width_option = click.option(
    "--width",
    type=click.IntRange(8, 128),
    default=32,
    help="Channels of the classifier after its first layer.",
)
views_option = click.option(
    "--views",
    type=click.Choice(["1", "4", "9", "16"]),
    default="9",
    help="Views of a picture that the bundle scores.",
)
BUDGET = (
    click.option("--minutes", type=click.FloatRange(min=0.01), default=60, help="Time budget."),
    click.option(
        "--max-steps", type=click.IntRange(min=1), help="Step budget, instead of minutes: reproducible."
    ),
)
feature_option = click.option(
    "--feature", type=click.Choice(FEATURES), default="dnf", help="Classifier's input."
)
unet_option = click.option(
    "--unet", "unet_folder", help="Diffusers folder or hub id; without dnf in the feature, for what is shown."
)
seed_option = click.option("--seed", type=int, default=1, help="Seed of all random draws.")
CLASSIFIER_TRAINING = (
    click.option(
        "--classifier",
        "kind",
        type=click.Choice(["resnet", "cooccurrences"]),
        default="resnet",
        help="A residual network, trained in steps, or a linear one on co-occurrences, solved at once.",
    ),
    click.option(
        "--preset",
        type=click.Choice(["own", "paper"]),
        default="own",
        help="paper replaces network, crops, batch and learning rate by the published ones.",
    ),
    *BUDGET,
    batch_option(2),
    click.option(
        "--learning-rate", type=click.FloatRange(0, 1, min_open=True), help="Peak learning rate; 0.001."
    ),
    click.option(
        "--chain",
        type=click.Choice(["mild", "uploads"]),
        default="mild",
        help="Augmentation of the crops; uploads adds stronger scaling, blur, noise, codecs and screenshots.",
    ),
    click.option(
        "--twins",
        multiple=True,
        type=click.Choice(["upsampled", "noisy"]),
        help="Train on twins of the photographs, too, as generated pictures; may be repeated.",
    ),
    click.option(
        "--bank",
        type=click.IntRange(min=0),
        default=0,
        help="Crops of each picture, drawn once and stored with their features; 0: new ones at each step, "
        "or three squares for co-occurrences.",
    ),
    seed_option,
)
MACHINE = (
    click.option("--device", default="cpu", help="cpu, cuda or cuda:N."),
    click.option("--loaders", type=click.IntRange(1, 64), default=1, help="Processes that draw crops."),
)


def readable_samples(corpus: Path, splits: Sequence[str], layout: Layout) -> list[Sample]:
    """Return the pictures of the splits that can be decoded."""
    try:
        return readable([sample for split in splits for sample in read_corpus(corpus, split, layout)])[0]
    except CorpusRejectedError as error:
        raise WrongUsageError(str(error)) from error


def numbers_of(option: str, text: str) -> tuple[int, ...]:
    """Return comma-separated numbers."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise WrongUsageError(f"{option} takes comma-separated numbers") from error


def estimator_of(feature: Feature, folder: str | None) -> "Unet | None":
    """Load the U-Net for a feature that needs one."""
    from detector.networks.unet import UnetRejectedError, load_unet

    if needs_unet(feature) and not folder:
        raise WrongUsageError("a feature with dnf needs --unet")
    try:
        return load_unet(folder) if folder else None
    except UnetRejectedError as error:
        raise WrongUsageError(str(error)) from error


def classifier_recipe(feature: Feature, options: dict[str, Any]) -> "ClassifierRecipe":
    """Return the recipe of a classifier on `feature` that the options describe."""
    from detector.training.recipe import OWN_RESNET, SQUARES, ClassifierRecipe, paper_recipe

    timesteps = numbers_of("--timesteps", options["timesteps"])
    if any(not 0 <= t <= _LAST_TIMESTEP for t in timesteps):
        raise WrongUsageError(f"--timesteps are in 0..{_LAST_TIMESTEP}")
    if options["kind"] == "cooccurrences":
        if not feature.endswith("rgb"):
            raise WrongUsageError("--classifier cooccurrences takes a --feature that ends with rgb")
        options = options | {"bank": options["bank"] or SQUARES}
    own = ("kind", "size", "batch", "chain", "twins", "bank", "seed")
    shared = (*own, "minutes", "max_steps", "device", "loaders")
    recipe = ClassifierRecipe(
        feature=feature,
        dnf=DnfConfig(timesteps=timesteps),
        network=OWN_RESNET.model_copy(update={"width": options["width"]}),
        views=int(options["views"]),
        **{name: options[name] for name in shared},
    )
    if options["learning_rate"] is not None:
        recipe = replace(recipe, learning_rate=options["learning_rate"])
    if options["preset"] == "paper":
        recipe = paper_recipe(recipe)
    if recipe.batch % 2:
        raise WrongUsageError("--batch must be even: half of a batch is of each class")
    return recipe
