"""Compare a U-Net's denoising with classical methods: `python -m tests.benchmarks.denoising UNET FOLDER`.

scikit-image (wavelets, non-local means) and bm3d are measured where they are installed; neither is a
dependency. A U-Net that loses to them gives a noise feature that is noise about noise.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from detector.images.decode import decode
from detector.images.views import crops
from detector.networks.dnf import NoiseEstimator
from detector.networks.unet import load_unet
from detector.terminal import Console
from detector.training.denoising import SIGMAS, denoised, psnr

SIDE, PICTURES = 128, 8

#: Takes a noisy picture (H, W, 3) in 0..1 and the deviation of its noise; returns the picture.
Method = Callable[[NDArray[np.float64], float], NDArray[np.float64]]


def methods() -> dict[str, Method]:
    """Return the classical methods that are installed, by name."""
    found: dict[str, Method] = {"none": lambda noisy, _: noisy}
    try:
        from skimage.restoration import denoise_nl_means, denoise_wavelet
    except ImportError:
        pass
    else:
        found["wavelets (scikit-image)"] = lambda noisy, sigma: denoise_wavelet(
            noisy, sigma=sigma, channel_axis=2, convert2ycbcr=True
        )
        found["non-local means (scikit-image)"] = lambda noisy, sigma: denoise_nl_means(
            noisy, h=0.8 * sigma, sigma=sigma, patch_size=5, patch_distance=6, channel_axis=2
        )
    try:
        from bm3d import bm3d_rgb
    except ImportError:
        pass
    else:
        found["BM3D"] = bm3d_rgb
    return found


def main(unet_folder: str, folder: str) -> None:
    """Print the mean PSNR in decibels of each method at each deviation of the noise."""
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix in {".jpg", ".png", ".webp"})
    chosen = paths[:: max(1, len(paths) // PICTURES)][:PICTURES]
    pictures = [crops(decode(path.read_bytes()).pixels, SIDE, 1)[0] / 127.5 - 1 for path in chosen]
    unet = load_unet(unet_folder)
    console = Console()
    console.print(f"{len(pictures)} squares of {SIDE} px, PSNR in dB at sigma {SIGMAS}, CPU seconds each")
    measured = methods() | {unet_folder: lambda noisy, sigma: _by_unet(unet, noisy, sigma)}
    for name, method in measured.items():
        figures = _figures(pictures, method)
        console.print(f"{name:32} " + "  ".join(f"{value:6.2f}" for value in figures))


def _by_unet(unet: NoiseEstimator, noisy: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    x = torch.from_numpy(noisy.transpose(2, 0, 1) * 2 - 1)[None].float()
    return np.asarray((denoised(unet, x, sigma * 255)[0].numpy().transpose(1, 2, 0) + 1) / 2)


def _figures(pictures: list[NDArray[np.float64]], method: Method) -> list[float]:
    """Return the PSNR at each sigma, and the seconds of processor time of one picture."""
    figures: list[float] = []
    began = time.process_time()
    for sigma in SIGMAS:
        values: list[float] = []
        for number, picture in enumerate(pictures):
            clean = (picture + 1) / 2
            noise = np.random.default_rng([sigma, number]).standard_normal(clean.shape) * sigma / 255
            result = np.clip(method(clean + noise, sigma / 255), 0, 1)
            values.append(psnr(torch.from_numpy(result * 2 - 1), torch.from_numpy(picture)))
        figures.append(float(np.mean(values)))
    return [*figures, (time.process_time() - began) / (len(SIGMAS) * len(pictures))]


if __name__ == "__main__":
    main(*sys.argv[1:3])
