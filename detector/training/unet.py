"""Train a small diffusion U-Net on photographs (Ho et al., "Denoising Diffusion Probabilistic Models", 2020).

The feature is the estimate at low timesteps, so most training timesteps are drawn from the least noisy part
of the schedule; the others are uniform, as in the paper.
"""

import time
from copy import deepcopy
from pathlib import Path

import numpy as np
import structlog
import torch
from diffusers import UNet2DModel
from numpy.typing import NDArray
from torch import Tensor

from detector.acceleration.precision import training_layout, training_precision
from detector.corpus.corpus import Sample
from detector.images.decode import decode
from detector.images.views import crops
from detector.networks.dnf import TRAINING_TIMESTEPS, signal_levels
from detector.networks.unet import Unet, save_unet
from detector.progress import Pace
from detector.training.augmentation import CodecChain
from detector.training.batches import batches_from
from detector.training.checkpoint import Stateful, load_checkpoint, save_checkpoint
from detector.training.curves import save_curves, training_state
from detector.training.denoising import denoising_psnr
from detector.training.recipe import UnetRecipe

log = structlog.get_logger(__name__)

_MEASURED = 16


def build_unet(channels: tuple[int, ...], size: int, patch: int = 1) -> Unet:
    """Return an untrained U-Net without attention, for pictures whose sides are divisible by 2^levels.

    With a `patch` of 2 it works at half the resolution on patches of 2 x 2 pixels.
    """
    levels = len(channels)
    return Unet(
        UNet2DModel(
            sample_size=size // patch,
            in_channels=3 * patch**2,
            out_channels=3 * patch**2,
            block_out_channels=channels,
            layers_per_block=1,
            down_block_types=("DownBlock2D",) * levels,
            up_block_types=("UpBlock2D",) * levels,
            norm_num_groups=16,
            norm_eps=1e-6,
            add_attention=False,
        )
    )


def train_unet(
    photographs: list[Sample], folder: Path, recipe: UnetRecipe, *, held_out: list[Sample] | None = None
) -> Unet:
    """Train until the budget is used up, and return the U-Net with averaged weights.

    Generated pictures among `photographs` and `held_out` are ignored. `folder` gets the weights, the curves
    and the checkpoint from which an interrupted training resumes. Reports say how well the U-Net denoises at
    most 16 of the `held_out` photographs, in decibels by the deviation of the noise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    pictures = [decode(sample.path.read_bytes()).pixels for sample in photographs if not sample.generated]
    unet = build_unet(recipe.channels, recipe.size, recipe.patch)
    measured = _squares([sample for sample in held_out or () if not sample.generated], recipe)
    unet.to(recipe.device, memory_format=training_layout(recipe.device))  # type: ignore[call-overload]
    averaged = deepcopy(unet)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=recipe.learning_rate, weight_decay=1e-4)
    levels = signal_levels(recipe.device)
    parts: dict[str, Stateful] = {"unet": unet, "averaged": averaged, "optimizer": optimizer}
    record = load_checkpoint(folder, parts) or {"losses": [], "seconds": 0.0}
    began, pace = time.monotonic() - record["seconds"], Pace(recipe.report_seconds)
    losses: list[float] = record["losses"]
    log.info("unet_training_started", step=len(losses), photographs=len(pictures))
    batches = batches_from(_Crops(pictures, recipe).batch, len(losses), recipe.loaders)
    while (progress := recipe.progress(len(losses), time.monotonic() - began)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * min(1, (len(losses) + 1) / 100) * (1 - 0.95 * progress)
        loss = _step(unet, next(batches), levels, recipe, len(losses))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        decay = min(recipe.ema, (1 + len(losses)) / (10 + len(losses)))
        for average, current in zip(averaged.parameters(), unet.parameters(), strict=True):
            average.data.lerp_(current.data, 1 - decay)
        losses.append(loss.item())
        if pace.due():
            seconds = time.monotonic() - began
            save_checkpoint(folder, parts, {"losses": losses, "seconds": seconds})
            progress = recipe.progress(len(losses), seconds)
            state = training_state(losses, recipe.batch, seconds, progress)
            log.info("unet_steps_trained", **state, **_psnr(averaged, measured, recipe))
    save_checkpoint(folder, parts, {"losses": losses, "seconds": time.monotonic() - began})
    log.info("unet_trained", step=len(losses), **_psnr(averaged, measured, recipe))
    averaged.cpu().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    save_unet(averaged, folder)
    save_curves(folder, "unet", losses, [])
    averaged.eval()
    return averaged


def _squares(photographs: list[Sample], recipe: UnetRecipe) -> list[NDArray[np.uint8]]:
    """Cut squares from the middle of photographs, for the denoising."""
    chosen = photographs[:: max(1, len(photographs) // _MEASURED)][:_MEASURED]
    return [crops(decode(sample.path.read_bytes()).pixels, recipe.size, 1)[0] for sample in chosen]


def _psnr(unet: Unet, pictures: list[NDArray[np.uint8]], recipe: UnetRecipe) -> dict[str, float]:
    if not pictures:
        return {}
    unet.eval()
    figures = denoising_psnr(unet, pictures, recipe.device)
    return {f"psnr_{sigma}": round(value, 2) for sigma, value in figures.items()}


class _Crops:
    """Batches of crops; batch `i` depends on the seed alone, so a resumed run draws the same batches."""

    def __init__(self, pictures: list[NDArray[np.uint8]], recipe: UnetRecipe) -> None:
        self._pictures, self._recipe, self._chain = pictures, recipe, CodecChain()

    def batch(self, index: int) -> Tensor:
        """Return batch `index`: (B, 3, S, S) uint8."""
        recipe = self._recipe
        rng = np.random.default_rng([recipe.seed, index])
        chosen = rng.integers(0, len(self._pictures), recipe.batch)
        crops = np.stack([self._chain(self._pictures[i], recipe.size, rng) for i in chosen])
        return torch.from_numpy(crops).permute(0, 3, 1, 2)


def _step(unet: Unet, pictures: Tensor, levels: Tensor, recipe: UnetRecipe, step: int) -> Tensor:
    x = pictures.to(recipe.device, non_blocking=True).float() / 127.5 - 1
    # A resumed run draws the same timesteps and the same noise at the same step.
    rng = np.random.default_rng([recipe.seed, step, 1])
    uniform = rng.integers(0, TRAINING_TIMESTEPS, len(x))
    low = rng.integers(0, recipe.low_timesteps, len(x))
    drawn = np.where(rng.random(len(x)) < recipe.low_share, low, uniform)
    t = torch.from_numpy(drawn).to(recipe.device)
    a = levels[t].float().view(-1, 1, 1, 1)
    generator = torch.Generator(x.device).manual_seed(int(rng.integers(1 << 62)))
    noise = torch.randn(x.shape, generator=generator, device=x.device)
    noisy = a.sqrt() * x + (1 - a).sqrt() * noise
    with training_precision(x.device):
        estimate = unet(noisy, t)
    loss: Tensor = (estimate.float() - noise).square().mean()
    return loss
