"""Baselines of a bundle: the same ResNet with the same budget, on RGB or on pixel residuals."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

from pydantic import JsonValue

from detector.bundle.files import MANIFEST_FILE, Bundle, open_bundle
from detector.bundle.manifest import ClassifierConfig, EnsembleConfig, ResNetConfig
from detector.corpus.corpus import (
    CorpusRejectedError,
    TrainingSplit,
    read_corpus,
    readable,
    training_split,
)
from detector.training.assembly import assemble
from detector.training.classifier import train_classifier
from detector.training.recipe import FIRST_ESTIMATE, ClassifierRecipe, paper_recipe

Baseline = Literal["rgb", "npr"]

_TRAIN = "train"


class BaselineRejectedError(ValueError):
    """No baseline with the bundle's budget can be trained or reused."""


def baseline_bundle(
    feature: Baseline, own: Bundle, corpus: Path, folder: Path, *, measured: Collection[Path], device: str
) -> Bundle:
    """Train the baseline of a bundle on the corpus's train split, or reuse the one in `folder`.

    The network (of an ensemble, its first residual one), the views, the batch size and the number of steps
    are those of `own`, from its manifest and its provenance. An interrupted training resumes. `measured` are
    the pictures of the evaluation, which must not be in the train split; `device` is where to train. Raises
    `BaselineRejectedError`.
    """
    budget = _budget(own)
    finished = folder / "bundle"
    if (finished / MANIFEST_FILE).exists():
        bundle = open_bundle(finished)
        if bundle.manifest.provenance.get("budget") != budget or bundle.manifest.feature != feature:
            raise BaselineRejectedError(
                f"{finished} was trained with another budget; remove it or choose another --out"
            )
        return bundle
    return _trained(feature, own, corpus, folder, budget, measured=measured, device=device)


def _budget(own: Bundle) -> dict[str, JsonValue]:
    manifest = own.manifest
    network = _residual_network(manifest.classifier)
    steps = manifest.provenance.get("classifier_steps")
    if not isinstance(steps, int) or steps < 1:
        raise BaselineRejectedError(
            "the bundle does not record its classifier_steps, so no baseline can have the same budget; "
            "train one and give it with --baseline-bundle"
        )
    return {
        "steps": steps,
        "batch": manifest.provenance.get("classifier_batch", 32),
        "bank": manifest.provenance.get("classifier_bank_crops", 0),
        "preset": manifest.provenance.get("preset", "own"),
        "held_out_families": manifest.provenance.get("held_out_families", []),
        "seed": manifest.provenance.get("seed", 1),
        "preprocessing": manifest.preprocessing.model_dump(mode="json"),
        "network": network.model_dump(mode="json", exclude={"in_channels"}),
    }


def _residual_network(classifier: ClassifierConfig) -> ResNetConfig:
    for branch in classifier.branches if isinstance(classifier, EnsembleConfig) else [classifier]:
        if isinstance(branch, ResNetConfig):
            return branch
    raise BaselineRejectedError(
        "the bundle has no residual network, so no baseline can have the same; "
        "train one and give it with --baseline-bundle"
    )


def _trained(
    feature: Baseline,
    own: Bundle,
    corpus: Path,
    folder: Path,
    budget: dict[str, JsonValue],
    *,
    measured: Collection[Path],
    device: str,
) -> Bundle:
    samples = _samples(corpus, cast("list[str]", budget["held_out_families"]))
    if {sample.path for sample in samples.training + samples.validation} & set(measured):
        raise BaselineRejectedError("the corpus has no train split without the pictures that are measured")
    recipe = _recipe(feature, own, budget, device)
    try:
        trained = train_classifier(None, samples.training, samples.validation, folder / "work", recipe)
    except ValueError as error:
        raise BaselineRejectedError(str(error)) from error
    return assemble(
        None,
        trained.network,
        samples.validation,
        folder / "bundle",
        recipe,
        name=f"{own.manifest.name}-{feature}",
        version=own.manifest.version,
        provenance={"budget": budget, "corpus_split": _TRAIN},
    )


def _samples(corpus: Path, held_out_families: list[str]) -> TrainingSplit:
    try:
        samples, _ = readable(read_corpus(corpus, _TRAIN))
        return training_split(samples, held_out_families)
    except CorpusRejectedError as error:
        raise BaselineRejectedError(f"a baseline is trained on the train split: {error}") from error


def _recipe(feature: Baseline, own: Bundle, budget: dict[str, JsonValue], device: str) -> ClassifierRecipe:
    preprocessing = own.manifest.preprocessing
    recipe = ClassifierRecipe(
        feature=feature,
        network=_residual_network(own.manifest.classifier).model_copy(update={"in_channels": 3}),
        mode=preprocessing.mode,
        size=preprocessing.size,
        views=preprocessing.views,
        batch=cast("int", budget["batch"]),
        bank=cast("int", budget["bank"]),
        max_steps=cast("int", budget["steps"]),
        seed=cast("int", budget["seed"]),
        device=device,
    )
    if budget["preset"] == "paper":
        # The published quantisation would clip the dark half of a picture to black.
        return replace(paper_recipe(recipe), dnf=FIRST_ESTIMATE)
    return recipe
