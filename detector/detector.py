"""The detector: a batch of pictures in, one finding for each picture out."""

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from numpy.typing import NDArray

from detector.acceleration.memory import to_device
from detector.bundle.files import Bundle, BundleError, resolve
from detector.bundle.manifest import Feature, needs_unet
from detector.images.domain import SQUARES, doubt_of
from detector.images.doubt import Doubt
from detector.images.views import (
    SQUASHED_BYTES,
    Pixels,
    PreparedPicture,
    Rectangle,
    crop_places,
    crops,
    squashed,
)

if TYPE_CHECKING:
    import torch

    from detector.networks.classifiers import Classifier
    from detector.networks.dnf import NoiseEstimator

Dtype = Literal["auto", "float32", "bfloat16"]

# A CPU is fastest on what fits its caches, a GPU on what fills it (`dnf-detector bench`).
_VIEWS_AT_ONCE_ON_CPU, _VIEWS_AT_ONCE = 9, 64


@dataclass(frozen=True)
class ScoredView:
    """The detector's result for one view of a picture."""

    #: Where it is in the picture.
    place: Rectangle
    #: Its logit; positive means *generated*.
    logit: float
    #: The calibrated probability of *generated* if this were all of the picture, 0..1.
    probability: float


@dataclass(frozen=True)
class Finding:
    """The detector's result for one picture."""

    #: Mean logit of the picture's views; positive means *generated*.
    logit: float
    #: Calibrated probability of *generated*, 0..1.
    probability: float
    #: Every view, in the order of `crop_places`; a squashed picture has one, which is all of it.
    views: tuple[ScoredView, ...]
    #: Index of the view with the highest logit.
    strongest: int
    #: Unquantised noise feature (C, H, W) of that view, without what was mirrored beyond the edges of a small
    #: picture; without a U-Net, the classifier's input.
    dnf: NDArray[np.float32]
    #: Milliseconds in which the feature of the whole batch was computed.
    dnf_ms: float
    #: Milliseconds in which the whole batch was classified.
    classify_ms: float
    #: Why the score says little about the picture; None for a picture of the usual kind.
    doubt: Doubt | None = None


class Detector:
    """A loaded bundle on one device; `prepare` is thread-safe, `examine` is not."""

    def __init__(
        self,
        bundle: Bundle,
        unet: "NoiseEstimator | None",
        classifier: "Classifier",
        device: "torch.device",
        dtype: "torch.dtype",
        *,
        acceleration: str,
    ) -> None:
        #: What was loaded, with its manifest and digest.
        self.bundle = bundle
        #: Which layers the networks run on, for people.
        self.acceleration = acceleration
        self._unet = unet
        self._classifier = classifier
        self._device = device
        self._dtype = dtype
        manifest = bundle.manifest
        self._dnf_channels = manifest.dnf.channels if unet else 3
        self._shows_unscored = unet is not None and not needs_unet(manifest.feature)

    @classmethod
    def load(
        cls,
        bundle: Bundle | str | Path = "default",
        *,
        device: str = "auto",
        dtype: Dtype = "auto",
        compiled: bool = False,
        plain: bool = False,
    ) -> Self:
        """Load a bundle's networks; a bundle that is not one yet is resolved first.

        `device` is auto, cpu, cuda, cuda:N or mps; the dtype "auto" is bfloat16 on CUDA and float32
        elsewhere; `compiled` lets PyTorch compile the U-Net on its first batches, and `plain` keeps PyTorch's
        layers as they are, as a reference. Raises `BundleError`.
        """
        import torch
        from safetensors.torch import load_file

        from detector.acceleration.inference import accelerate
        from detector.networks.classifiers import build_classifier
        from detector.networks.unet import UnetRejectedError, load_unet

        if not isinstance(bundle, Bundle):
            bundle = resolve(bundle)
        torch_device = torch.device(best_device() if device == "auto" else device)
        torch_dtype = _torch_dtype(torch_device, dtype)
        network = build_classifier(bundle.manifest.classifier)
        try:
            unet = load_unet(bundle.unet_folder) if bundle.unet_folder else None
            weights = load_file(bundle.classifier_path)
            network.load_state_dict({name: _widened(value) for name, value in weights.items()})
        except (UnetRejectedError, OSError, RuntimeError) as error:
            raise BundleError("malformed", f"The weights of {bundle.folder} do not fit: {error}") from error
        estimator, classifier, acceleration = accelerate(
            unet, network, torch_device, torch_dtype, compiled=compiled, plain=plain
        )
        return cls(bundle, estimator, classifier, torch_device, torch_dtype, acceleration=acceleration)

    @property
    def device(self) -> str:
        """The networks' device: cpu, cuda, cuda:N or mps."""
        return str(self._device)

    @property
    def dtype(self) -> str:
        """The type that the networks compute in: float32 or bfloat16."""
        return str(self._dtype).removeprefix("torch.")

    @property
    def preparation_bytes(self) -> int:
        """Bytes that `prepare` needs for each pixel of a picture, beside the picture and its views."""
        return SQUASHED_BYTES if self.bundle.manifest.preprocessing.mode == "squash" else 0

    def warm_up(self, batch_size: int) -> float:
        """Examine grey pictures until the networks have their full speed; return their pictures per second.

        A GPU computes every number of views for which a graph is captured, and full batches of `batch_size`.
        A CPU needs a single pass of views, from which the rate is extrapolated.
        """
        import torch

        from detector.acceleration.cuda_graphs import GRAPH_SIZES

        preprocessing = self.bundle.manifest.preprocessing
        size, most = preprocessing.size, batch_size * preprocessing.views
        if self._device.type == "cuda":
            with torch.inference_mode():
                for count in GRAPH_SIZES:
                    self.feature(torch.zeros(min(count, most), 3, size, size))
        grey = self.prepare(np.full((size, size, 3), 128, dtype=np.uint8))
        batch = [grey] * batch_size
        if self.device == "cpu":
            batch = [PreparedPicture(grey.views[:_VIEWS_AT_ONCE_ON_CPU], grey.places[:_VIEWS_AT_ONCE_ON_CPU])]
        self.examine(batch)
        began = time.perf_counter()
        self.examine(batch)
        seconds = time.perf_counter() - began
        return sum(len(each.places) for each in batch) / len(grey.places) / seconds

    def prepare(self, picture: Pixels) -> PreparedPicture:
        """Cut the views of a picture, which is the right way up.

        Raises what cutting from the picture raises.
        """
        preprocessing = self.bundle.manifest.preprocessing
        height, width = picture.shape[:2]
        size, count = preprocessing.size, preprocessing.views
        if preprocessing.mode == "squash":
            pixels = picture[:, :]
            whole = (Rectangle(0, 0, width, height),)
            return PreparedPicture(squashed(pixels, size), whole, doubt_of(pixels))
        views = crops(picture, size, count)
        doubt = doubt_of(picture, views if (size, count) == SQUARES else None)
        return PreparedPicture(views, crop_places(height, width, size, count), doubt)

    def examine(self, prepared: Sequence[PreparedPicture]) -> list[Finding]:
        """Examine prepared pictures as one batch; the findings are in the order of the pictures."""
        import torch

        from detector.networks.dnf import quantised

        if not prepared:
            return []
        manifest = self.bundle.manifest
        features: list[NDArray[np.float32]] = []
        logits: list[float] = []
        first = np.cumsum([0, *(len(picture.places) for picture in prepared)])
        dnf_ms = classify_ms = 0.0
        with torch.inference_mode():
            all_views = torch.from_numpy(np.concatenate([picture.views for picture in prepared]))
            for views in self._parts(all_views):
                started = self._clock_ms()
                dnf = self.feature(views)  # (n, C, S, S)
                computed = self._clock_ms()
                seen = quantised(dnf) if manifest.dnf.quantise else dnf
                logits += self._classifier(seen).float().flatten().tolist()
                classified = self._clock_ms()
                dnf_ms += computed - started
                classify_ms += classified - computed
                if not self._shows_unscored:
                    features += list(dnf.cpu().numpy())
            of_picture = [logits[start:stop] for start, stop in itertools.pairwise(first)]
            strongest = first[:-1] + [int(np.argmax(own)) for own in of_picture]
            if self._shows_unscored:
                started = self._clock_ms()
                features = self._noise_features(all_views[strongest])
                dnf_ms += self._clock_ms() - started
            else:
                features = [features[index] for index in strongest]
        return [
            self._finding(picture, own, feature, dnf_ms, classify_ms)
            for picture, own, feature in zip(prepared, of_picture, features, strict=True)
        ]

    def _noise_features(self, views: "torch.Tensor") -> "list[NDArray[np.float32]]":
        """Compute the noise feature of views (B, 3, S, S), which the classifier does not take."""
        return [feature for part in self._parts(views) for feature in self.feature(part, "dnf").cpu().numpy()]

    def _finding(
        self,
        picture: PreparedPicture,
        logits: list[float],
        feature: NDArray[np.float32],
        dnf_ms: float,
        classify_ms: float,
    ) -> Finding:
        manifest = self.bundle.manifest
        probability = manifest.calibration.probability
        logit, strongest = float(np.mean(logits)), int(np.argmax(logits))
        dnf = feature[: self._dnf_channels]
        if manifest.preprocessing.mode == "crop":
            place = picture.places[strongest]
            dnf = dnf[:, : place.height, : place.width]
        return Finding(
            logit=logit,
            probability=probability(logit),
            views=tuple(
                ScoredView(place, logit, probability(logit))
                for place, logit in zip(picture.places, logits, strict=True)
            ),
            strongest=strongest,
            dnf=dnf,
            dnf_ms=dnf_ms,
            classify_ms=classify_ms,
            doubt=picture.doubt,
        )

    def _parts(self, views: "torch.Tensor") -> "Sequence[torch.Tensor]":
        """Split views (B, ...) into those that the networks take at once."""
        parts: Sequence[torch.Tensor]
        if self.device != "cpu":
            parts = views.split(_VIEWS_AT_ONCE)
        else:
            # Evenly: a part of a single view would read all weights for it.
            parts = views.tensor_split(math.ceil(len(views) / _VIEWS_AT_ONCE_ON_CPU))
        return parts

    def feature(self, views: "torch.Tensor", kind: Feature | None = None) -> "torch.Tensor":
        """Compute the feature of views: (B, C, S, S) float32 on this device.

        They are (B, S, S, 3) uint8, or (B, 3, S, S) float32 in -1..1. By default it is what is classified.
        """
        from detector.networks.features import compute_feature, network_input

        manifest = self.bundle.manifest
        # Bytes are a quarter of what has to be moved.
        x = network_input(to_device(views, self._device))
        return compute_feature(kind or manifest.feature, self._unet, x, manifest.dnf)

    def _clock_ms(self) -> float:
        """Return the time in milliseconds once the device has finished its work."""
        import torch

        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter() * 1000


def best_device() -> str:
    """Return the device that "auto" stands for: the first available of cuda, mps and cpu."""
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
