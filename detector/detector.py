"""The detector: a batch of pictures to findings. The model is loaded once a process."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from numpy.typing import NDArray

from detector.bundle.files import Bundle, BundleError, resolve
from detector.bundle.manifest import needs_unet
from detector.images.views import crops

if TYPE_CHECKING:
    import torch

    from detector.networks.dnf import NoiseEstimator
    from detector.networks.ensemble import Towers
    from detector.networks.resnet import ResNet

Dtype = Literal["auto", "float32", "bfloat16"]

# A CPU works fastest on what its caches hold (`dnf-detector bench`), a GPU on what fills it.
_VIEWS_AT_ONCE_ON_CPU, _VIEWS_AT_ONCE = 4, 64


@dataclass(frozen=True)
class Finding:
    """What the detector says of one picture.

    `logit` is the mean over its views, positive for *generated*; `probability` is calibrated, 0..1; `dnf`
    (C, S, S) float32 is the feature, unquantised, of the view with the highest logit (for a baseline, what
    its classifier saw); `dnf_ms` and
    `classify_ms` are the milliseconds that the whole batch took in each network.
    """

    logit: float
    probability: float
    dnf: NDArray[np.float32]
    dnf_ms: float
    classify_ms: float


class Detector:
    """A loaded bundle on one device. `prepare` may run in many threads, `examine` in one at a time."""

    def __init__(
        self,
        bundle: Bundle,
        unet: "NoiseEstimator | None",
        classifier: "ResNet | Towers",
        device: "torch.device",
        dtype: "torch.dtype",
        *,
        acceleration: str,
    ) -> None:
        self.bundle = bundle
        self._unet = unet
        self._classifier = classifier
        self._device = device
        self._dtype = dtype
        #: Which layers the networks run on, in words.
        self.acceleration = acceleration
        manifest = bundle.manifest
        self._dnf_channels = manifest.dnf.channels if needs_unet(manifest.feature) else 3

    @classmethod
    def load(
        cls,
        bundle: Bundle | str | Path = "default",
        *,
        device: str = "auto",
        dtype: Dtype = "auto",
        threads: int | None = None,
        compiled: bool = False,
    ) -> Self:
        """Load a bundle's networks.

        `device` is auto, cpu, cuda, cuda:N or mps; `dtype` auto means bfloat16 on CUDA and float32
        elsewhere; `threads` bounds the CPU threads of this process; `compiled` lets PyTorch compile the
        U-Net, on its first batches. Raises `BundleError`.
        """
        import torch
        from safetensors.torch import load_file

        from detector.acceleration.networks import install
        from detector.networks.ensemble import build_classifier
        from detector.networks.unet import UnetRejectedError, load_unet

        if not isinstance(bundle, Bundle):
            bundle = resolve(bundle)
        if threads is not None:
            torch.set_num_threads(threads)
        place = torch.device(best_device() if device == "auto" else device)
        kind = _torch_dtype(place, dtype)
        classifier = build_classifier(bundle.manifest.classifier)
        try:
            source, location = bundle.manifest.unet, bundle.unet_location
            unet = load_unet(location, source.revision) if source and location else None
            weights = load_file(bundle.classifier_path)
            classifier.load_state_dict({name: _widened(value) for name, value in weights.items()})
        except (UnetRejectedError, OSError, RuntimeError) as error:
            raise BundleError("malformed", f"The weights of {bundle.folder} do not fit: {error}") from error
        estimator, classifier, acceleration = install(unet, classifier, place, kind, compiled=compiled)
        return cls(bundle, estimator, classifier, place, kind, acceleration=acceleration)

    @property
    def device(self) -> str:
        """Where the networks are: cpu, cuda, cuda:N or mps."""
        return str(self._device)

    @property
    def dtype(self) -> str:
        """What the networks compute in: float32 or bfloat16."""
        return str(self._dtype).removeprefix("torch.")

    def warm_up(self, batch_size: int) -> None:
        """Run one batch of grey pictures, so that the first real one does not pay for the start."""
        size = self.bundle.manifest.preprocessing.size
        grey = np.full((size, size, 3), 128, dtype=np.uint8)
        self.examine([self.prepare(grey)] * batch_size)

    def prepare(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Turn pixels (H, W, 3) uint8 into the U-Net's input (views, 3, S, S) float32 in -1..1."""
        preprocessing = self.bundle.manifest.preprocessing
        if preprocessing.mode == "crop":
            views = crops(pixels, preprocessing.size, preprocessing.views).transpose(0, 3, 1, 2)
            return views.astype(np.float32) / np.float32(127.5) - 1
        return _squashed(pixels, preprocessing.size)

    def examine(self, prepared: Sequence[NDArray[np.float32]]) -> list[Finding]:
        """Judge prepared pictures together; the findings come in their order."""
        import torch

        if not prepared:
            return []
        views = torch.from_numpy(np.concatenate(prepared))
        features: list[NDArray[np.float32]] = []
        logits: list[float] = []
        dnf_ms = classify_ms = 0.0
        with torch.inference_mode():
            for chunk in views.split(_VIEWS_AT_ONCE_ON_CPU if self.device == "cpu" else _VIEWS_AT_ONCE):
                began = time.perf_counter()
                dnf = self.feature(chunk)
                self._synchronise()
                computed = time.perf_counter()
                logits += self._judge(dnf)
                classify_ms += (time.perf_counter() - computed) * 1000
                dnf_ms += (computed - began) * 1000
                features += list(dnf.cpu().numpy())
        findings: list[Finding] = []
        for picture in prepared:
            own, logits = logits[: len(picture)], logits[len(picture) :]
            own_features, features = features[: len(picture)], features[len(picture) :]
            logit = float(np.mean(own))
            probability = self.bundle.manifest.calibration.probability(logit)
            strongest = own_features[int(np.argmax(own))][: self._dnf_channels]
            findings.append(Finding(logit, probability, strongest, dnf_ms, classify_ms))
        return findings

    def feature(self, views: "torch.Tensor") -> "torch.Tensor":
        """Compute the feature of views (B, 3, S, S) in -1..1: (B, C, S, S) float32 on this device."""
        from detector.acceleration.networks import to_device
        from detector.networks.features import compute_feature

        manifest = self.bundle.manifest
        return compute_feature(manifest.feature, self._unet, to_device(views, self._device), manifest.dnf)

    def _judge(self, dnf: "torch.Tensor") -> list[float]:
        from detector.networks.dnf import quantised

        seen = quantised(dnf) if self.bundle.manifest.dnf.quantise else dnf
        logits: list[float] = self._classifier(seen.to(self._dtype)).float().flatten().tolist()
        return logits

    def _synchronise(self) -> None:
        import torch

        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            torch.mps.synchronize()


def best_device() -> str:
    """Return the device that "auto" stands for: cuda, mps or cpu, the first that there is."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _torch_dtype(device: "torch.device", dtype: Dtype) -> "torch.dtype":
    import torch

    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.float32 if dtype == "float32" else torch.bfloat16


def _widened(weight: "torch.Tensor") -> "torch.Tensor":
    return weight.float() if weight.is_floating_point() else weight


def _squashed(pixels: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    import torch

    picture = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(picture, (size, size), mode="bicubic", antialias=True)
    return (resized / 255 * 2 - 1).numpy()
