"""Generated twins of photographs, made while training: only the trace of a generator tells the two apart.

Frank et al., "Leveraging Frequency Analysis for Deep Fake Image Recognition", ICML 2020, on the traces of
up-sampling; arXiv 2603.14220 on photographs with weak noise as generated pictures.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from detector.corpus.corpus import Sample
from detector.images.degradations import Pixels

_RESIZES = (
    Image.Resampling.NEAREST,
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
)
_LARGEST_NOISE = 4.0


def with_twins(samples: list[Sample], kinds: Iterable[str]) -> list[Sample]:
    """Add a generated twin of each kind for every photograph; it is a family of its own."""
    made = [
        replace(sample, generated=True, family=f"twin-{kind}", generator=f"twin-{kind}", twin=kind)
        for kind in kinds
        for sample in samples
        if not sample.generated
    ]
    return samples + made


def twin(kind: str, pixels: Pixels, rng: Generator) -> Pixels:
    """Return the twin (H, W, 3) of a photograph (H, W, 3); `kind` is one of `TWINS`."""
    return TWINS[kind](pixels, rng)


def _upsampled(pixels: Pixels, rng: Generator) -> Pixels:
    """Halve a picture and double it again as a generator's last layer does, and give back some of the detail.

    The layer is a resize, or one filter of 3 x 3 for each of the four phases of the finer grid: that is a
    transposed convolution or a pixel shuffle. A share of 0 to 0.9 of what halving lost is added again, so
    that blur does not give the twin away.
    """
    height, width = (side - side % 2 for side in pixels.shape[:2])
    if min(height, width) < 4:  # noqa: PLR2004 - smaller than the filters
        return pixels
    even = pixels[:height, :width].astype(np.float32)
    small = even.reshape(height // 2, 2, width // 2, 2, 3).mean(axis=(1, 3))
    if rng.random() < 0.4:  # noqa: PLR2004
        kernel = _RESIZES[int(rng.integers(len(_RESIZES)))]
        rounded = Image.fromarray(np.rint(small).astype(np.uint8))
        large = np.asarray(rounded.resize((width, height), kernel), dtype=np.float32)
    else:
        large = _by_phases(small, rng)
    smooth = np.asarray(
        Image.fromarray(np.rint(small).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC),
        dtype=np.float32,
    )
    detail = rng.uniform(0, 0.9)
    made = pixels.copy()
    made[:height, :width] = np.clip(np.rint(large + detail * (even - smooth)), 0, 255)
    return made


def _by_phases(small: NDArray[np.float32], rng: Generator) -> NDArray[np.float32]:
    """Double a picture (h, w, 3) with a random filter for each phase, near to bilinear interpolation."""
    height, width = small.shape[:2]
    padded = np.pad(small, ((1, 1), (1, 1), (0, 0)), mode="edge")
    large = np.empty((2 * height, 2 * width, 3), dtype=np.float32)
    spread = rng.uniform(0.01, 0.08)
    for row in (0, 1):
        for column in (0, 1):
            near = np.array([[0.25, 0.75, 0.0], [0.0, 0.75, 0.25]])
            weights = np.outer(near[row], near[column]) + rng.normal(0, spread, (3, 3))
            weights /= weights.sum()
            large[row::2, column::2] = sum(
                weights[y, x] * padded[y : y + height, x : x + width] for y in range(3) for x in range(3)
            )
    return large


def _noisy(pixels: Pixels, rng: Generator) -> Pixels:
    """Add Gaussian noise of at most four grey levels, white or as fine as two pixels."""
    height, width = pixels.shape[:2]
    sigma = rng.uniform(0.5, _LARGEST_NOISE)
    noise = rng.normal(0, sigma, (height, width, 3))
    if rng.random() < 0.5:  # noqa: PLR2004
        noise = (noise + np.roll(noise, 1, 0) + np.roll(noise, 1, 1) + np.roll(noise, (1, 1), (0, 1))) / 2
    return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)


TWINS: dict[str, Callable[[Pixels, Generator], Pixels]] = {"upsampled": _upsampled, "noisy": _noisy}
