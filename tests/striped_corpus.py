"""A corpus of forty tiny pictures that any classifier can learn."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_striped_corpus(folder: Path) -> Path:
    """Write the corpus to `folder` and return it: noise is real, stripes (two families) are generated."""
    rng = np.random.default_rng(0)
    for index in range(20):
        noise = rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)
        stripes = np.tile((np.arange(96) // 4 % 2 * 200).astype(np.uint8)[None, :, None], (96, 1, 3))
        for pixels, place in ((noise, "real"), (np.roll(stripes, index, 1), f"generated/g{index % 2}")):
            (folder / place).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / place / f"{index}.png")
    return folder
