"""Assemble a bundle from trained networks, and calibrate it on held-out pictures."""

import hashlib
import math
import shutil
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue
from safetensors.torch import load_file, save_file
from torch import nn

from detector.acceleration.precision import computes_bfloat16
from detector.bundle.calibration import (
    PlattScaling,
    fit_platt,
    thresholds_for_budget,
)
from detector.bundle.files import Bundle, write_manifest
from detector.bundle.manifest import (
    FEATURES,
    DnfConfig,
    EnsembleConfig,
    Feature,
    Manifest,
    UnetSource,
)
from detector.bundle.thresholds import Thresholds
from detector.corpus.corpus import Sample
from detector.detector import Detector, Dtype, best_device
from detector.images.degradations import Pixels
from detector.networks.classifiers import Branch, Ensemble
from detector.networks.unet import Unet, save_unet
from detector.progress import Progress
from detector.scoring import Rewrite, ScoreJournal, score_samples
from detector.training.augmentation import CodecChain
from detector.training.batches import LARGEST_SQUARE
from detector.training.recipe import ClassifierRecipe
from detector.training.trained import LeftOutScores

_MAX_CALIBRATION_PICTURES = 400

Logits = NDArray[np.float64]
Labels = NDArray[np.int64]


class FusionRejectedError(ValueError):
    """The bundles cannot form an ensemble."""


def assemble(
    unet: Unet | None,
    classifier: Branch,
    calibration: list[Sample],
    folder: Path,
    recipe: ClassifierRecipe,
    *,
    name: str,
    version: str,
    provenance: dict[str, JsonValue],
    left_out: LeftOutScores | None = None,
) -> Bundle:
    """Write the networks in float16 as a bundle whose score and thresholds are fitted on `calibration`.

    At most 400 of these pictures are scored, each after one augmentation, as a square of its shorter side, at
    most 384 pixels. The scores of pictures whose generator and source were `left_out` replace them, if there
    are any. At the thresholds at most 1 % of the photographs among them are flagged as generated, and
    at most 10 % are flagged or sent to review.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if unet:
        save_unet(unet, folder / "unet", half=True)
    _save_classifier(classifier, folder)
    manifest = Manifest(
        name=name,
        version=version,
        created=_now(),
        preprocessing=recipe.preprocessing,
        feature=recipe.feature,
        dnf=recipe.dnf,
        unet=UnetSource(folder="unet") if unet else None,
        classifier=recipe.classifier_config,
        calibration=PlattScaling(),
        thresholds=Thresholds(review_from=0.5, generated_from=0.5),
        provenance=provenance,
    )
    if left_out:
        return _calibrated(manifest, folder, left_out.logits, left_out.labels)
    journal = _journal(folder)
    logits, labels = _logits(write_manifest(folder, manifest), calibration, journal)
    journal.remove()
    return _calibrated(manifest, folder, logits, labels)


def fuse(bundles: Sequence[Bundle], folder: Path, *, name: str, version: str) -> Bundle:
    """Write an ensemble of the classifiers of `bundles`: its logit is the mean of their calibrated log-odds.

    Their features are its parts, in the order of a known feature, such as `npr`, then `rgb`. Its thresholds
    are the highest of theirs, until it is calibrated itself. Raises `FusionRejectedError` when the bundles do
    not fit together.
    """
    manifests = [bundle.manifest for bundle in bundles]
    feature, dnf, config = _fused_config(manifests)
    network = Ensemble(config)
    for branch, bundle in zip(network.branches, bundles, strict=True):
        branch.load_state_dict(load_file(bundle.classifier_path))
    scales = [manifest.calibration for manifest in manifests]
    network.mix.weight.data = torch.tensor([[scale.slope / len(scales) for scale in scales]])
    network.mix.bias.data = torch.tensor([sum(scale.offset for scale in scales) / len(scales)])
    folder.mkdir(parents=True, exist_ok=True)
    source = next((bundle for bundle in bundles if bundle.unet_folder), None)
    if source:
        shutil.copytree(str(source.unet_folder), folder / "unet", dirs_exist_ok=True)
    _save_classifier(network, folder)
    first, *others = manifests
    manifest = first.model_copy(
        update={
            "name": name,
            "version": version,
            "created": _now(),
            "feature": feature,
            "dnf": dnf,
            "unet": UnetSource(folder="unet") if source else None,
            "classifier": config,
            "calibration": PlattScaling(),
            "thresholds": Thresholds(
                review_from=max(each.thresholds.review_from for each in manifests),
                generated_from=max(each.thresholds.generated_from for each in manifests),
            ),
            "figures": {},
            "provenance": {**first.provenance, **{each.feature: each.provenance for each in others}},
        }
    )
    return write_manifest(folder, manifest)


def _journal(folder: Path) -> ScoreJournal:
    # Beside the bundle, because a bundle has no file that its manifest does not list.
    return ScoreJournal(folder.with_name(f"{folder.name}-calibration.jsonl"))


def _fused_config(manifests: Sequence[Manifest]) -> tuple[Feature, DnfConfig, EnsembleConfig]:
    """Return the feature and the classifier of the ensemble. Raises `FusionRejectedError`."""
    name = "+".join(manifest.feature for manifest in manifests)
    feature = next((known for known in FEATURES if known == name and "+" in known), None)
    if feature is None:
        raise FusionRejectedError(
            f"the features must be two or more of dnf, npr and rgb, in this order, not {name}"
        )
    # What makes the noise feature: of the branch that scores it, or of the one that shows it.
    dnf = next((each.dnf for each in manifests if each.unet), manifests[0].dnf)
    if any(each.dnf.quantise or each.preprocessing != manifests[0].preprocessing for each in manifests):
        raise FusionRejectedError("the bundles must have the same views and no quantisation")
    branches = [each.classifier for each in manifests if not isinstance(each.classifier, EnsembleConfig)]
    if len(branches) < len(manifests):
        raise FusionRejectedError("an ensemble cannot be a branch of another")
    return feature, dnf, EnsembleConfig(branches=tuple(branches))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _calibrated(manifest: Manifest, folder: Path, logits: Logits, labels: Labels) -> Bundle:
    calibration = fit_platt(logits, labels)
    on_photographs = np.array([calibration.probability(logit) for logit in logits[labels == 0]])
    thresholds = thresholds_for_budget(on_photographs, flagged=0.01, reviewed=0.10)
    return write_manifest(
        folder, manifest.model_copy(update={"calibration": calibration, "thresholds": thresholds})
    )


def _save_classifier(classifier: nn.Module, folder: Path) -> None:
    weights = {name: _half(value) for name, value in classifier.state_dict().items()}
    save_file(weights, folder / "classifier.safetensors")


def _half(weight: torch.Tensor) -> torch.Tensor:
    # Only convolutions: small variances of batch normalisation would underflow in float16.
    return weight.half().contiguous() if weight.dim() > 2 else weight  # noqa: PLR2004


def _logits(bundle: Bundle, samples: list[Sample], journal: ScoreJournal) -> tuple[Logits, Labels]:
    device = best_device()
    # Equal to float32 to two decimals, and several times as fast where the CPU has the instructions.
    dtype: Dtype = "bfloat16" if computes_bfloat16(torch.device(device)) else "float32"
    detector = Detector.load(bundle, device=device, dtype=dtype)
    chosen = samples[:: math.ceil(len(samples) / _MAX_CALIBRATION_PICTURES)]
    progress = Progress("calibration_pictures_scored", len(chosen), feature=bundle.manifest.feature)
    # Without the time of creation, so that an interrupted calibration continues.
    identity = bundle.manifest.model_copy(update={"created": ""}).model_dump_json()
    scored = score_samples(
        detector,
        chosen,
        augmented_square(bundle.manifest.preprocessing.size),
        condition="calibration",
        journal=journal,
        identity=hashlib.sha256(identity.encode()).hexdigest(),
        progress=progress.advance,
    )
    return np.array([item.logit for item in scored]), np.array([int(item.generated) for item in scored])


def augmented_square(size: int) -> Rewrite:
    """Return what cuts a square of at least `size` and at most 384 pixels after one draw of the chain.

    The draw depends on the file's name alone, so it is the same in every run.
    """
    chain = CodecChain()

    def rewrite(pixels: Pixels, sample: Sample) -> Pixels:
        side = max(size, min(LARGEST_SQUARE, *pixels.shape[:2]))
        return chain(pixels, side, np.random.default_rng(zlib.crc32(sample.path.name.encode())))

    return rewrite
