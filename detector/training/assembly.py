"""A bundle from trained networks, calibrated on held-out pictures."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from pydantic import JsonValue
from safetensors.torch import save_file

from detector.bundle import Bundle, write_manifest
from detector.calibration import PlattScaling, fit_platt, thresholds_for_budget
from detector.detector import Detector
from detector.images import decode
from detector.manifest import Manifest, Preprocessing, UnetSource
from detector.policy import Thresholds
from detector.resnet import ResNet
from detector.training.augmentation import CodecChain
from detector.training.classifier import ClassifierTraining
from detector.training.corpus import Sample
from detector.unet import Unet, save_unet

_HISTORIES = 3
_CALIBRATION_SIDE = 256


def assemble(
    unet: Unet,
    classifier: ResNet,
    validation: list[Sample],
    folder: Path,
    recipe: ClassifierTraining,
    *,
    name: str,
    version: str,
    provenance: dict[str, JsonValue],
) -> Bundle:
    """Write the networks in float16 as a bundle whose scores and thresholds are fitted on `validation`.

    Each held-out picture is scored after several random histories. The thresholds let at most 2 % of the
    held-out reals be called generated and at most 20 % reach a person or worse.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_unet(unet, folder / "unet", half=True)
    weights = {name: _half(value) for name, value in classifier.state_dict().items()}
    save_file(weights, folder / "classifier.safetensors")
    manifest = Manifest(
        name=name,
        version=version,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        preprocessing=Preprocessing(mode="crop", size=recipe.size, views=4),
        dnf=recipe.dnf,
        unet=UnetSource(folder="unet"),
        classifier=recipe.network,
        calibration=PlattScaling(),
        thresholds=Thresholds(review_from=0.5, generated_from=0.5),
        provenance=provenance,
    )
    detector = Detector.load(write_manifest(folder, manifest))
    logits, labels = _held_out_logits(detector, validation)
    calibration = fit_platt(logits, labels)
    reals = np.array([calibration.probability(logit) for logit in logits[labels == 0]])
    thresholds = thresholds_for_budget(reals, accused=0.02, reviewed=0.20)
    fitted = manifest.model_copy(update={"calibration": calibration, "thresholds": thresholds})
    return write_manifest(folder, fitted)


def _half(weight: torch.Tensor) -> torch.Tensor:
    # The statistics of the batch normalisation keep their range: a small variance would vanish in float16.
    return weight.half().contiguous() if weight.dim() > 1 else weight


def _held_out_logits(
    detector: Detector, samples: list[Sample]
) -> tuple[
    np.ndarray[tuple[int, ...], np.dtype[np.float64]], np.ndarray[tuple[int, ...], np.dtype[np.int64]]
]:
    rng = np.random.default_rng(0)
    chain = CodecChain()
    logits: list[float] = []
    for sample in samples:
        pixels = decode(sample.path.read_bytes()).pixels
        prepared = [detector.prepare(chain(pixels, _CALIBRATION_SIDE, rng)) for _ in range(_HISTORIES)]
        logits += [finding.logit for finding in detector.examine(prepared)]
    labels = np.repeat([int(sample.generated) for sample in samples], _HISTORIES)
    return np.array(logits), labels
