"""Conversion of published checkpoints, a DDIM U-Net and the DNF authors' classifier, to a bundle."""

import json
import pickle
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from detector.bundle.calibration import PlattScaling
from detector.bundle.files import MODEL_CARD_FILE, Bundle, BundleError, write_manifest
from detector.bundle.manifest import DnfConfig, Manifest, Preprocessing, ResNetConfig, UnetSource
from detector.bundle.thresholds import Thresholds
from detector.networks.resnet import ResNet
from detector.networks.unet import DdimConfig, UnetRejectedError, from_ddim_checkpoint, save_unet

_CARD = """# {name}

Converted from a DDIM checkpoint ({ddim}) and a classifier checkpoint ({classifier}); nothing was trained or
measured here. The preprocessing is the published one: the picture is squashed to {size} x {size} pixels, and
the first noise estimate is clamped and quantised as in the authors' picture files. The score is the sigmoid
of the logit without calibration, and the threshold is the paper's 0.5. A score is a signal, not proof.
"""


def convert(ddim: Path, unet_config: Path, classifier: Path, out: Path, *, name: str | None = None) -> Bundle:
    """Write a bundle in `out` that runs the paper's detector unchanged, and return it.

    `ddim` is a bare state dict in the DDIM authors' naming, `unet_config` its configuration as JSON,
    `classifier` a state dict or `{"model": state dict}`; pickles are read with `weights_only=True`. Raises
    `BundleError`.
    """
    if out.exists() and any(out.iterdir()):
        raise BundleError("malformed", f"{out} is not empty.")
    try:
        config = DdimConfig.model_validate(json.loads(unet_config.read_text()))
        unet = from_ddim_checkpoint(_state_dict(ddim), config)
    except (OSError, ValueError, ValidationError, UnetRejectedError) as error:
        raise BundleError("malformed", f"The U-Net cannot be converted: {error}") from error
    weights = _state_dict(classifier)
    network_config = ResNetConfig(depth=50 if "layer1.0.conv3.weight" in weights else 18)
    network = ResNet(network_config)
    try:
        network.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise BundleError("malformed", f"{classifier} is not a ResNet with one logit: {error}") from error
    out.mkdir(parents=True, exist_ok=True)
    try:
        save_unet(unet, out / "unet")
        save_file(network.state_dict(), out / "classifier.safetensors")
        size = config.data.image_size
        manifest = Manifest(
            name=name or out.name,
            version="1",
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            preprocessing=Preprocessing(mode="squash", size=size),
            dnf=DnfConfig(variant="first", quantise=True),
            unet=UnetSource(folder="unet"),
            classifier=network_config,
            calibration=PlattScaling(),
            thresholds=Thresholds(review_from=0.5, generated_from=0.5),
            provenance={"unet": ddim.name, "classifier": classifier.name, "preset": "paper"},
        )
        card = _CARD.format(name=manifest.name, ddim=ddim.name, classifier=classifier.name, size=size)
        (out / MODEL_CARD_FILE).write_text(card)
        return write_manifest(out, manifest)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise


def _state_dict(path: Path) -> Mapping[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise BundleError(
            "malformed", f"{path} cannot be read as a checkpoint of tensors: {error}"
        ) from error
    state = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise BundleError("malformed", f"{path} does not hold a state dict.")
    return {str(name).removeprefix("module."): value for name, value in state.items()}
