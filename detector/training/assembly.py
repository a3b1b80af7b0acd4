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
    fit_logistic,
    fit_platt,
    thresholds_for_budget,
)
from detector.bundle.files import Bundle, write_manifest
from detector.bundle.manifest import (
    FEATURES,
    Feature,
    Manifest,
    ResNetConfig,
    UnetSource,
    feature_channels,
    needs_unet,
)
from detector.bundle.thresholds import Thresholds
from detector.corpus.corpus import Sample
from detector.detector import Detector, Dtype, best_device
from detector.images.degradations import Pixels
from detector.networks.cooccurrences import CooccurrenceClassifier
from detector.networks.resnet import Ensemble, ResNet
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
    classifier: ResNet | CooccurrenceClassifier,
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


def fuse(
    bundles: Sequence[Bundle], calibration: list[Sample], folder: Path, *, name: str, version: str
) -> Bundle:
    """Write an ensemble of the networks of `bundles`, weighted and calibrated on `calibration`.

    Their features must be `dnf`, then `npr`, `rgb` or both. A logistic regression on the calibration pictures
    gives the weights of the logits. Raises `FusionRejectedError` when the bundles do not fit together.
    """
    manifests = [bundle.manifest for bundle in bundles]
    first = manifests[0]
    feature, config = _fused_config(manifests)
    if {sample.generated for sample in calibration} != {True, False}:
        raise FusionRejectedError("there are no held-out pictures of both classes to weight the branches on")
    journal = _journal(folder)
    scored = [_logits(bundle, calibration, journal) for bundle in bundles]
    values, labels = np.stack([logits for logits, _ in scored], axis=1), scored[0][1]
    *weights, offset = fit_logistic(values, labels)
    network = Ensemble(config)
    for branch, bundle in zip(network.branches, bundles, strict=True):
        branch.load_state_dict(load_file(bundle.classifier_path))
    network.mix.weight.data = torch.tensor([weights], dtype=torch.float32)
    network.mix.bias.data = torch.tensor([offset], dtype=torch.float32)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(str(bundles[0].unet_folder), folder / "unet", dirs_exist_ok=True)
    _save_classifier(network, folder)
    others = {manifest.feature: manifest.provenance for manifest in manifests[1:]}
    fusion_weights = {manifest.feature: float(w) for manifest, w in zip(manifests, weights, strict=True)}
    manifest = first.model_copy(
        update={
            "name": name,
            "version": version,
            "created": _now(),
            "feature": feature,
            "classifier": config,
            "figures": {},
            "provenance": {**first.provenance, "fusion_weights": fusion_weights, **others},
        }
    )
    journal.remove()
    return _calibrated(manifest, folder, values @ np.array(weights) + offset, labels)


def _journal(folder: Path) -> ScoreJournal:
    # Beside the bundle, because a bundle has no file that its manifest does not list.
    return ScoreJournal(folder.with_name(f"{folder.name}-calibration.jsonl"))


def _fused_config(manifests: Sequence[Manifest]) -> tuple[Feature, ResNetConfig]:
    """Return the feature and the classifier of the ensemble. Raises `FusionRejectedError`."""
    first = manifests[0]
    name = "+".join(manifest.feature for manifest in manifests)
    feature = next((known for known in FEATURES if known == name and "+" in known), None)
    if feature is None or not needs_unet(feature):
        raise FusionRejectedError(f"the features must be dnf, then npr, rgb or both, not {name}")
    if first.dnf.quantise or any(m.preprocessing != first.preprocessing for m in manifests):
        raise FusionRejectedError("the bundles must have the same views and no quantisation")
    branches = feature_channels(feature, first.dnf)
    configs = [
        m.classifier.model_copy(update={"in_channels": sum(branches), "branches": branches})
        for m in manifests
        if isinstance(m.classifier, ResNetConfig)
    ]
    if len(configs) < len(manifests) or any(config != configs[0] for config in configs):
        raise FusionRejectedError(
            "the classifiers of the bundles must be residual networks of the same shape"
        )
    return feature, configs[0]


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
