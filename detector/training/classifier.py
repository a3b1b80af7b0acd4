"""Train the ResNet on a feature of augmented crops of both classes."""

import hashlib
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from detector.acceleration.inference import accelerate
from detector.acceleration.precision import computes_bfloat16, training_precision
from detector.bundle.manifest import needs_unet
from detector.corpus.corpus import Sample
from detector.images.decode import decode
from detector.metrics import auroc
from detector.networks.dnf import quantised
from detector.networks.features import combined, compute_feature
from detector.networks.resnet import ResNet
from detector.networks.unet import Unet
from detector.progress import Pace, Progress
from detector.training.bank import CropBank
from detector.training.batches import BalancedPictures, CropMaker, PictureBatch, batches_from
from detector.training.checkpoint import Stateful, load_checkpoint, save_checkpoint
from detector.training.cooccurrences import fit_cooccurrences
from detector.training.curves import save_curves, training_state
from detector.training.recipe import ClassifierRecipe
from detector.training.trained import TrainedClassifier
from detector.training.twins import with_twins

log = structlog.get_logger(__name__)

_MAX_VALIDATION_PICTURES = 1024
_MIN_LEARNING_RATE = 1e-6
_WARM_UP_STEPS = 50
_PICTURES_AT_ONCE = 32
# Of the side of a view: the crops that a bank stores, and those that a step cuts from them.
_STORED_EIGHTHS, _CUT_EIGHTHS = 12, 6


@dataclass(frozen=True)
class _Batch:
    features: Tensor
    labels: Tensor
    #: Numbers of the families; None for pictures that are not trained on.
    families: Tensor | None = None


def train_classifier(
    unet: Unet | None,
    training: list[Sample],
    validation: list[Sample],
    folder: Path,
    recipe: ClassifierRecipe,
    *,
    bank: Path | None = None,
    banked: list[Sample] | None = None,
    initial: ResNet | None = None,
) -> TrainedClassifier:
    """Train until the budget is used up, and return the averaged network.

    With a `patience` in the recipe it is the one with the best AUROC on `validation`, else the last one.

    `folder` gets the curves and the checkpoint from which an interrupted training resumes; stored crops and
    features go to `bank`, or below `folder`. A bank of all `banked` pictures, by default those of the
    training, serves every training on a part of them. Fine-tunes `initial`, or starts from random weights.
    Raises ValueError when a class is missing.

    A classifier on co-occurrences is fitted at once instead, and its `bank` holds nothing but features.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if recipe.kind == "cooccurrences":
        return fit_cooccurrences(unet, training, validation, bank or folder / "bank", recipe, banked=banked)
    source = _FeatureSource(unet, with_twins(training, recipe.twins), recipe)
    if recipe.bank:
        source.open_bank(bank or folder / "bank", with_twins(banked or training, recipe.twins))
    return _train_in_steps(source, source.held_out(validation), folder, recipe, initial)


def _train_in_steps(
    source: "_FeatureSource",
    held_out: "_Batch",
    folder: Path,
    recipe: ClassifierRecipe,
    initial: ResNet | None,
) -> TrainedClassifier:
    torch.manual_seed(recipe.seed)
    network = ResNet(recipe.network.model_copy(update={"in_channels": recipe.channels}))
    # On a CPU a step takes four fifths of the time of contiguous weights, in float32 and in bfloat16.
    network.to(recipe.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    averaged = deepcopy(network)
    # Families are many questions about traces where the label is one; what answers them is not kept.
    families = nn.Linear(network.fc.in_features, len(source.families)).to(recipe.device)
    trained = nn.ModuleList([network, families] if recipe.family_weight else [network])
    make = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    optimizer = make(trained.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    best = deepcopy(averaged)
    parts: dict[str, Stateful] = {
        "network": network,
        "averaged": averaged,
        "best": best,
        "families": families,
        "optimizer": optimizer,
    }
    record = load_checkpoint(folder, parts)
    if record is None:
        record = {"losses": [], "validation": [], "seconds": 0.0}
        if initial:
            network.load_state_dict(initial.state_dict())
        else:
            _normalise_input(network, held_out.features)
        averaged.load_state_dict(network.state_dict())
    began, pace = time.monotonic() - record["seconds"], Pace(recipe.report_seconds)
    log.info("classifier_training_started", feature=recipe.feature, step=len(record["losses"]))
    done = bool(record["validation"]) and recipe.progress(len(record["losses"]), record["seconds"]) >= 1
    for batch in () if done else source.batches(len(record["losses"])):
        steps, seconds = len(record["losses"]), time.monotonic() - began
        progress = recipe.progress(steps, seconds)
        rate = _learning_rate(steps, progress, record["validation"], recipe)
        for group in optimizer.param_groups:
            group["lr"] = rate
        record["losses"].append(_step(network, families, optimizer, batch, recipe.family_weight))
        _average(averaged, network, min(recipe.ema, (1 + steps) / (10 + steps)))
        last = recipe.progress(steps + 1, seconds) >= 1 or (
            recipe.schedule == "plateau" and rate < _MIN_LEARNING_RATE
        )
        validated = last or (steps + 1) % recipe.validate_steps == 0
        if validated:
            value = _validate(averaged, held_out)
            record["validation"].append([steps + 1, value])
            # A cosine ends well by itself, and pictures of known generators are no judge of new ones.
            if recipe.patience is None or value >= max(earlier for _, earlier in record["validation"]):
                best.load_state_dict(averaged.state_dict())
        if pace.due() or validated:
            record["seconds"] = time.monotonic() - began
            save_checkpoint(folder, parts, record)
            _report(record, recipe, validated=validated)
        if last or (
            validated and recipe.schedule == "cosine" and _stale(record["validation"], recipe.patience)
        ):
            break
    save_curves(folder, "classifier", record["losses"], record["validation"])
    values = [value for _, value in record["validation"]]
    return TrainedClassifier(
        best.cpu().eval(), len(record["losses"]), values[-1] if recipe.patience is None else max(values)
    )


class _FeatureSource:
    """Features with labels, of new crops at each step or from a bank."""

    def __init__(self, unet: Unet | None, training: list[Sample], recipe: ClassifierRecipe) -> None:
        self._recipe = recipe
        self._unet = unet = unet if needs_unet(recipe.feature) else None
        device = torch.device(recipe.device)
        dtype = torch.bfloat16 if computes_bfloat16(device) else torch.float32
        # Training features are computed exactly as a worker computes them.
        self._estimator, _, _ = accelerate(deepcopy(unet), nn.Identity(), device, dtype)
        self._pictures = BalancedPictures(
            training, recipe.augmentation, size=recipe.size, batch=recipe.batch, seed=recipe.seed
        )
        self._bank: CropBank | None = None

    def open_bank(self, folder: Path, samples: list[Sample]) -> None:
        """Use a bank of `samples`, and draw what it lacks.

        A U-Net's estimates are stored with crops of the views' size. Without one, each step cuts new crops
        from larger ones.
        """
        recipe = self._recipe
        maker = self._pictures.maker
        if self._unet is None:
            maker = CropMaker(recipe.augmentation, recipe.size * _STORED_EIGHTHS // 8)
        self._bank = CropBank(folder, samples, maker, recipe.bank, recipe.seed)
        self._bank.fill(loaders=recipe.loaders)

    @property
    def families(self) -> list[str]:
        """The names of all families."""
        return self._pictures.families

    def batches(self, first: int) -> Iterator[_Batch]:
        """Yield batches from number `first` on, without end."""
        recipe = self._recipe
        if self._bank is None:
            for fresh in batches_from(self._pictures.batch, first, recipe.loaders):
                yield self._batch(self._features(torch.from_numpy(fresh.pictures)), fresh)
            return
        name = self._stored_features()
        if name:
            self._bank.fill_features(name, self._estimates)
        crops, stored = self._bank.crops, self._bank.features(name) if name else None
        for index in itertools.count(first):
            draws = self._pictures.draws(index)
            rows = [self._bank.row(sample, seed) for sample, seed in draws]
            if self._unet is None:
                pictures = _cut([crops[row] for row in rows], draws, recipe.size * _CUT_EIGHTHS // 8)
                batch = self._pictures.labelled(pictures, draws)
                yield self._batch(self._features(torch.from_numpy(pictures)), batch)
                continue
            mirrored = np.random.default_rng([recipe.seed, index, 1]).random() < 0.5  # noqa: PLR2004
            pictures = _rows_of(crops, rows, -2 if mirrored else None)
            batch = self._pictures.labelled(pictures, draws)
            if stored is None:
                yield self._batch(self._features(torch.from_numpy(pictures)), batch)
                continue
            x = self._pixels(torch.from_numpy(pictures))
            estimates = torch.from_numpy(_rows_of(stored, rows, -1 if mirrored else None)).to(x)
            yield self._batch(self._quantised(combined(recipe.feature, estimates, x)), batch)

    def _stored_features(self) -> str | None:
        """Return a name for stored features, unique to the U-Net and timesteps; None to store none.

        A CUDA device computes features faster than a disk reads them, so a bank then stores only the crops.
        """
        if self._unet is None or torch.device(self._recipe.device).type == "cuda":
            return None
        digest = hashlib.sha256()
        for weight in self._unet.state_dict().values():
            digest.update(weight.cpu().float().numpy().tobytes())
        return f"dnf-{'-'.join(map(str, self._recipe.dnf.timesteps))}-{digest.hexdigest()[:8]}"

    def held_out(self, samples: list[Sample]) -> _Batch:
        """Return the features of held-out pictures, augmented in the same way in every run."""
        chosen = samples[:: math.ceil(len(samples) / _MAX_VALIDATION_PICTURES)]
        rng = np.random.default_rng(0)
        augment, size = self._recipe.augmentation, self._recipe.size
        crops = np.stack([augment(decode(s.path.read_bytes()).pixels, size, rng) for s in chosen])
        progress = Progress("validation_features_computed", len(crops))
        computed: list[Tensor] = []
        for part in torch.from_numpy(crops).split(_PICTURES_AT_ONCE):
            computed.append(self._features(part).cpu())
            progress.advance(len(part))
        features = torch.cat(computed)
        return _Batch(features, torch.tensor([float(sample.generated) for sample in chosen]))

    def _batch(self, features: Tensor, of: PictureBatch) -> _Batch:
        labels, families = (
            torch.from_numpy(each).to(self._recipe.device) for each in (of.labels, of.families)
        )
        return _Batch(features.to(self._recipe.device), labels, families)

    def _pixels(self, pictures: Tensor) -> Tensor:
        return pictures.permute(0, 3, 1, 2).to(self._recipe.device).float() / 127.5 - 1

    @torch.no_grad()
    def _estimates(self, pictures: Tensor) -> Tensor:
        return compute_feature("dnf", self._estimator, self._pixels(pictures), self._recipe.dnf).clone()

    @torch.no_grad()
    def _features(self, pictures: Tensor) -> Tensor:
        recipe, x = self._recipe, self._pixels(pictures)
        return self._quantised(compute_feature(recipe.feature, self._estimator, x, recipe.dnf)).clone()

    def _quantised(self, features: Tensor) -> Tensor:
        return quantised(features) if self._recipe.dnf.quantise else features


def _rows_of(values: NDArray[Any], rows: list[int], mirrored_axis: int | None) -> NDArray[Any]:
    picked = values[rows]
    return np.ascontiguousarray(picked if mirrored_axis is None else np.flip(picked, mirrored_axis))


def _cut(
    stored: Sequence[NDArray[np.uint8]], draws: Sequence[tuple[Sample, int]], side: int
) -> NDArray[np.uint8]:
    """Cut a random square from each stored crop, turned over at random; of both of a pair the same."""
    cut: list[NDArray[np.uint8]] = []
    for crop, (_, seed) in zip(stored, draws, strict=True):
        rng = np.random.default_rng(seed)
        top, left = rng.integers(0, crop.shape[0] - side + 1, 2)
        down, across = rng.choice([-1, 1], 2)
        cut.append(crop[top : top + side, left : left + side][::down, ::across])
    return np.stack(cut)


def _normalise_input(network: ResNet, features: Tensor) -> None:
    """Scale the first convolution so that every input channel has unit variance, whatever its timestep."""
    scale = features.std(dim=(0, 2, 3)).clamp_min(1e-6)
    network.conv1.weight.data.div_(scale.to(network.conv1.weight.device).view(1, -1, 1, 1))


def _learning_rate(
    steps: int, progress: float, validation: list[tuple[int, float]], recipe: ClassifierRecipe
) -> float:
    if recipe.schedule == "cosine":
        warm_up = min(1.0, (steps + 1) / _WARM_UP_STEPS)
        return recipe.learning_rate * warm_up * (0.5 + 0.5 * math.cos(math.pi * min(1.0, progress)))
    rate, best, without_improvement = recipe.learning_rate, -math.inf, 0
    for _, value in validation:
        without_improvement = 0 if value > best else without_improvement + 1
        best = max(best, value)
        if recipe.patience is not None and without_improvement > recipe.patience:
            rate, without_improvement = rate / 10, 0
    return rate


def _stale(validation: list[tuple[int, float]], patience: int | None) -> bool:
    values = [value for _, value in validation]
    return patience is not None and len(values) - 1 - int(np.argmax(values)) > patience


def _step(
    network: ResNet,
    families: nn.Linear,
    optimizer: torch.optim.Optimizer,
    batch: _Batch,
    family_weight: float,
) -> float:
    """Take one step, and return the loss of the labels alone."""
    network.train()
    with training_precision(batch.features.device):
        embedding = network.embedding(batch.features)
        logits = network.fc(embedding).float().flatten()
        named = families(embedding).float() if family_weight else None
    loss = total = nn.functional.binary_cross_entropy_with_logits(logits, batch.labels)
    if named is not None and batch.families is not None:
        total = loss + family_weight * nn.functional.cross_entropy(named, batch.families)
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    optimizer.step()
    return loss.item()


@torch.inference_mode()
def _validate(network: ResNet, held_out: _Batch) -> float:
    network.eval()
    device = network.conv1.weight.device
    with training_precision(device):
        parts = held_out.features.split(_PICTURES_AT_ONCE)
        logits = torch.cat([network(part.to(device)).float().flatten().cpu() for part in parts])
    return auroc(logits.double().numpy(), held_out.labels.long().numpy())


@torch.no_grad()
def _average(averaged: ResNet, network: ResNet, decay: float) -> None:
    for average, current in zip(averaged.state_dict().values(), network.state_dict().values(), strict=True):
        if average.is_floating_point():
            average.lerp_(current, 1 - decay)
        else:
            average.copy_(current)


def _report(record: dict[str, Any], recipe: ClassifierRecipe, *, validated: bool) -> None:
    losses, seconds = record["losses"], record["seconds"]
    state = training_state(losses, recipe.batch, seconds, recipe.progress(len(losses), seconds))
    if validated:
        auroc_of_last = round(record["validation"][-1][1], 4)
        log.info("classifier_validated", feature=recipe.feature, **state, validation_auroc=auroc_of_last)
    else:
        log.info("classifier_steps_trained", feature=recipe.feature, **state)
