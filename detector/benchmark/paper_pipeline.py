"""The published pipeline as its authors run it, for comparison, and networks of the published size.

Zhang and Xu, "Diffusion Noise Feature", arXiv 2312.02625 (v3), and the authors' public code: float32, the
contiguous layout, pictures squashed to 256 x 256, the feature written to a picture file and read back.
"""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from detector.bundle.calibration import PlattScaling
from detector.bundle.files import Bundle, BundleError, write_manifest
from detector.bundle.manifest import DnfConfig, Manifest, Preprocessing, ResNetConfig, UnetSource
from detector.bundle.thresholds import Thresholds
from detector.images.decode import decode
from detector.images.thumbnail import saved_picture
from detector.images.views import squashed

if TYPE_CHECKING:
    import torch

PAPER_SIZE = 256


class PaperPipeline:
    """The published pipeline with a bundle's weights; features are written as files to `folder`.

    Raises `BundleError` for a bundle without a U-Net, or with more than one noise estimate.
    """

    def __init__(self, bundle: Bundle, folder: Path, *, device: str = "cpu", size: int = PAPER_SIZE) -> None:
        import torch
        from safetensors.torch import load_file

        from detector.networks.classifiers import build_classifier
        from detector.networks.unet import load_unet

        unet_folder = bundle.unet_folder
        if not unet_folder or bundle.manifest.classifier.in_channels != 3:  # noqa: PLR2004
            raise BundleError("malformed", f"{bundle.folder} is not a detector on a single noise estimate.")
        self._folder, self._size, self._device = folder, size, torch.device(device)
        self._unet = load_unet(unet_folder).to(self._device)
        self._classifier = build_classifier(bundle.manifest.classifier)
        self._classifier.load_state_dict(load_file(bundle.classifier_path))
        self._classifier.to(self._device).eval()

    def logits(self, files: Sequence[bytes]) -> list[float]:
        """Return the logits of encoded pictures, in their order, computed in one batch."""
        import torch

        paths = self.save_features(files)
        pictures = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
        batch = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous().to(self._device).float() / 255
        with torch.inference_mode():
            logits: list[float] = self._classifier(batch).flatten().tolist()
        return logits

    def save_features(self, files: Sequence[bytes]) -> list[Path]:
        """Compute the features of encoded pictures and write each as a PNG of `size` x `size` pixels."""
        import torch

        views = np.concatenate([squashed(decode(data).pixels, self._size) for data in files])
        timesteps = torch.zeros(len(files), dtype=torch.long, device=self._device)
        with torch.inference_mode():
            features = self._unet(torch.from_numpy(views).to(self._device), timesteps).cpu().numpy()
        paths = [self._folder / f"{index}.png" for index in range(len(files))]
        for path, feature in zip(paths, features, strict=True):
            Image.fromarray(saved_picture(feature)).save(path)
        return paths


def full_size_bundle(folder: Path, *, seed: int = 0) -> Bundle:
    """Write a bundle of the published networks with random weights: LSUN-Bedroom's U-Net and the ResNet-50.

    113.67 M and 23.5 M parameters, 550 MB, drawn by `weight_by_rule`; nothing is downloaded.
    """
    from diffusers import UNet2DModel
    from safetensors.torch import save_file

    from detector.networks.resnet import ResNet
    from detector.networks.unet import (
        DdimConfig,
        DdimDataConfig,
        DdimModelConfig,
        Unet,
        diffusers_config,
        save_unet,
    )

    shape = DdimModelConfig(ch=128, ch_mult=(1, 1, 2, 2, 4, 4), num_res_blocks=2, attn_resolutions=(16,))
    config = DdimConfig(data=DdimDataConfig(image_size=PAPER_SIZE), model=shape)
    network = UNet2DModel(**diffusers_config(config))
    classifier = ResNet(ResNetConfig())
    for module in (network, classifier):
        state = {name: weight_by_rule(name, value, seed) for name, value in module.state_dict().items()}
        module.load_state_dict(state)
    folder.mkdir(parents=True, exist_ok=True)
    save_unet(Unet(network), folder / "unet")
    save_file(classifier.state_dict(), folder / "classifier.safetensors")
    manifest = Manifest(
        name="full-size",
        version="0",
        created="2026-01-01T00:00:00Z",
        preprocessing=Preprocessing(mode="squash", size=PAPER_SIZE),
        dnf=DnfConfig(variant="first", quantise=True),
        unet=UnetSource(folder="unet"),
        classifier=ResNetConfig(),
        calibration=PlattScaling(),
        thresholds=Thresholds(review_from=0.5, generated_from=0.5),
    )
    return write_manifest(folder, manifest)


def weight_by_rule(name: str, like: "torch.Tensor", seed: int) -> "torch.Tensor":
    """Return a random weight for the parameter `name`, in the shape of `like`; name and `seed` determine it.

    With r standard normal: r / sqrt(fan-in) for more than one dimension, 1 + 0.1 |r| for running variances,
    1 + 0.1 r for the scales of normalisations, 0.1 r for biases and running means.
    """
    import torch

    if name.endswith("num_batches_tracked"):
        return torch.zeros_like(like)
    random = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
    values = random.standard_normal(like.shape)
    if like.dim() > 1:
        values = values / np.sqrt(np.prod(like.shape[1:]))
    elif name.endswith("running_var"):
        values = 1 + 0.1 * np.abs(values)
    elif name.endswith(".weight"):
        values = 1 + 0.1 * values
    else:
        values = 0.1 * values
    return torch.from_numpy(np.asarray(values, dtype=np.float32))
