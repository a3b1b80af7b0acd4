"""Train the ResNet on the Diffusion Noise Feature of both classes after one random codec chain."""

import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from detector.dnf import diffusion_noise_feature
from detector.images import decode
from detector.manifest import DnfConfig, ResNetConfig
from detector.metrics import auroc
from detector.resnet import ResNet
from detector.training.augmentation import CodecChain
from detector.training.corpus import Sample
from detector.training.prefetch import prefetched
from detector.unet import Unet

log = structlog.get_logger()

SMALL_RESNET = ResNetConfig(depth=18, width=32, stem_pool=False)
FIRST_ESTIMATE = DnfConfig()


@dataclass(frozen=True)
class ClassifierTraining:
    """The recipe: `size` of crops in pixels, `batch` pictures (half of each class), wall-clock `minutes`."""

    network: ResNetConfig = SMALL_RESNET
    dnf: DnfConfig = FIRST_ESTIMATE
    size: int = 128
    batch: int = 32
    minutes: float = 60.0
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    ema: float = 0.99
    seed: int = 1
    validate_minutes: float = 4.0


class BalancedPictures:
    """Endless batches, half real and half generated, families alike within a class, pairs together."""

    def __init__(self, samples: list[Sample], recipe: ClassifierTraining, rng: Generator) -> None:
        self._recipe, self._rng = recipe, rng
        self._chain = CodecChain()
        self._pixels = {sample.path: decode(sample.path.read_bytes()).pixels for sample in samples}
        self._families: dict[bool, dict[str, list[Sample]]] = {
            False: defaultdict(list),
            True: defaultdict(list),
        }
        for sample in samples:
            self._families[sample.generated][sample.family].append(sample)
        self._twin = _twins(samples)
        if not all(self._families.values()):
            raise ValueError("training needs pictures of both classes")

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pictures (B, 3, S, S) uint8 and labels (B,) float, 1 for generated."""
        while True:
            chosen: list[Sample] = []
            while len(chosen) < self._recipe.batch:
                generated = self._draw(generated=True)
                chosen += [generated, self._twin.get(generated.path) or self._draw(generated=False)]
            crops = [self._chain(self._pixels[s.path], self._recipe.size, self._rng) for s in chosen]
            labels = torch.tensor([float(sample.generated) for sample in chosen])
            yield torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2), labels

    def _draw(self, *, generated: bool) -> Sample:
        # Square roots: small families are seen more often than their share, yet are not learned by heart.
        families = list(self._families[generated].values())
        weights = np.sqrt([len(family) for family in families])
        family = families[int(self._rng.choice(len(families), p=weights / weights.sum()))]
        return family[int(self._rng.integers(len(family)))]


def _twins(samples: list[Sample]) -> dict[Path, Sample]:
    """Map each generated picture of a pair to the real one that it was made from."""
    real = {sample.group: sample for sample in samples if not sample.generated}
    return {s.path: real[s.group] for s in samples if s.generated and s.group in real}


def train_classifier(
    unet: Unet, training: list[Sample], validation: list[Sample], folder: Path, recipe: ClassifierTraining
) -> ResNet:
    """Train until the minutes are used up; return the averaged network with the best validation AUROC.

    Progress, the checkpoint to resume from and the record of losses go to `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    unet = deepcopy(unet).eval().to(dtype=torch.bfloat16)
    held_out = _validation_features(unet, validation, recipe)
    network = ResNet(recipe.network)
    averaged = deepcopy(network)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    state = _resume(folder, network, averaged, optimizer)
    best = deepcopy(averaged)
    if state["best"] is not None:
        best.load_state_dict(state["best"])
    began, validated = time.monotonic() - state["seconds"], time.monotonic()
    # A resumed run must not see the first run's pictures again, in the same order.
    rng = np.random.default_rng([recipe.seed, len(state["losses"])])
    for pictures, labels in prefetched(iter(BalancedPictures(training, recipe, rng))):
        elapsed = time.monotonic() - began
        progress = min(1.0, elapsed / (recipe.minutes * 60))
        steps = len(state["losses"])
        for group in optimizer.param_groups:
            group["lr"] = (
                recipe.learning_rate * min(1, (steps + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * progress))
            )
        state["losses"].append(_step(network, optimizer, _features(unet, pictures, recipe), labels))
        _average(averaged, network, min(recipe.ema, (1 + steps) / (10 + steps)))
        if progress >= 1 or time.monotonic() - validated > recipe.validate_minutes * 60:
            validated = time.monotonic()
            figure = _validate(averaged, *held_out)
            state["validation"].append([steps, figure])
            if figure >= max(value for _, value in state["validation"]):
                best = deepcopy(averaged)
            state.update(seconds=time.monotonic() - began, best=best.state_dict())
            _checkpoint(folder, network, averaged, optimizer, state)
            log.info(
                "classifier_trained",
                step=steps,
                loss=round(float(np.mean(state["losses"][-100:])), 4),
                validation_auroc=round(figure, 4),
                pictures_per_second=round(steps * recipe.batch / max(elapsed, 1), 1),
                minutes_left=round(recipe.minutes - elapsed / 60, 1),
            )
        if progress >= 1:
            return best.eval()
    raise AssertionError("unreachable: batches are endless")


def _step(network: ResNet, optimizer: torch.optim.Optimizer, features: Tensor, labels: Tensor) -> float:
    network.train()
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(features).float().flatten()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.item()


@torch.inference_mode()
def _features(unet: Unet, pictures: Tensor, recipe: ClassifierTraining) -> Tensor:
    return diffusion_noise_feature(unet, pictures.float() / 127.5 - 1, recipe.dnf).clone()


def _validation_features(
    unet: Unet, samples: list[Sample], recipe: ClassifierTraining
) -> tuple[Tensor, NDArray[np.int64]]:
    """Return the features of every held-out picture after one chain that is the same in every run."""
    rng = np.random.default_rng(0)
    chain = CodecChain()
    crops = np.stack([chain(decode(s.path.read_bytes()).pixels, recipe.size, rng) for s in samples])
    pictures = torch.from_numpy(crops).permute(0, 3, 1, 2)
    features = torch.cat([_features(unet, part, recipe) for part in pictures.split(32)])
    return features, np.array([int(sample.generated) for sample in samples])


@torch.inference_mode()
def _validate(network: ResNet, features: Tensor, labels: NDArray[np.int64]) -> float:
    network.eval()
    logits = torch.cat([network(part).flatten() for part in features.split(32)])
    return auroc(logits.double().numpy(), labels)


@torch.no_grad()
def _average(averaged: ResNet, network: ResNet, decay: float) -> None:
    for average, current in zip(averaged.state_dict().values(), network.state_dict().values(), strict=True):
        if average.is_floating_point():
            average.lerp_(current, 1 - decay)
        else:
            average.copy_(current)


def _checkpoint(
    folder: Path, network: ResNet, averaged: ResNet, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    partial = folder / "training.pt.part"
    networks = {"network": network.state_dict(), "averaged": averaged.state_dict()}
    torch.save({**networks, "optimizer": optimizer.state_dict(), **state}, partial)
    partial.replace(folder / "training.pt")
    record = {"losses": state["losses"], "validation": state["validation"]}
    (folder / "losses.json").write_text(json.dumps(record))


def _resume(
    folder: Path, network: ResNet, averaged: ResNet, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    checkpoint = folder / "training.pt"
    if not checkpoint.exists():
        return {"losses": [], "validation": [], "seconds": 0.0, "best": None}
    training = torch.load(checkpoint, weights_only=True)
    network.load_state_dict(training.pop("network"))
    averaged.load_state_dict(training.pop("averaged"))
    optimizer.load_state_dict(training.pop("optimizer"))
    return dict(training)
