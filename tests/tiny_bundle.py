"""An untrained bundle in the real format that loads in a second: `python -m tests.tiny_bundle DIR`."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from detector.bundle.calibration import PlattScaling
from detector.bundle.files import write_manifest
from detector.bundle.manifest import DnfConfig, Manifest, Preprocessing, ResNetConfig, UnetSource
from detector.bundle.thresholds import Thresholds
from detector.networks.resnet import ResNet
from detector.networks.unet import save_unet
from detector.training.unet import build_unet

ONE_CROP = Preprocessing(mode="crop", size=64, views=1)


def make_tiny_bundle(
    folder: Path, *, name: str = "tiny", seed: int = 7, preprocessing: Preprocessing = ONE_CROP
) -> Path:
    """Write the bundle to `folder` and return the folder; the weights depend on the seed."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    classifier = ResNetConfig(depth=18, width=8)
    save_unet(build_unet((16, 32), 64), folder / "unet", half=True)
    save_file(ResNet(classifier).state_dict(), folder / "classifier.safetensors")
    manifest = Manifest(
        name=name,
        version="0",
        created="2026-01-01T00:00:00Z",
        preprocessing=preprocessing,
        dnf=DnfConfig(),
        unet=UnetSource(folder="unet"),
        classifier=classifier,
        calibration=PlattScaling(),
        thresholds=Thresholds(review_from=0.4, generated_from=0.6),
    )
    return write_manifest(folder, manifest).folder


if __name__ == "__main__":
    make_tiny_bundle(Path(sys.argv[1]))
