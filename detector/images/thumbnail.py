"""Pictures of a Diffusion Noise Feature, for people."""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def dnf_picture(dnf: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Show a signed feature (C, H, W), C >= 3, as (H, W, 3): grey is zero, four deviations span the range.

    The contrast follows each feature's own deviation, so brightness cannot be compared between pictures.
    """
    first = dnf[:3].transpose(1, 2, 0)
    spread = max(float(first.std()), 1e-6)
    picture: NDArray[np.uint8] = np.clip(127.5 + first * (127.5 / (4 * spread)), 0, 255).astype(np.uint8)
    return picture


def saved_picture(dnf: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Show a feature (C, H, W) as the published pipeline saves it, (H, W, 3): negative noise is black."""
    picture: NDArray[np.uint8] = np.clip(dnf[:3] * 255 + 0.5, 0, 255).astype(np.uint8)
    return picture.transpose(1, 2, 0)


def dnf_thumbnail(dnf: NDArray[np.float32], side: int = 128) -> bytes:
    """Encode the picture of a feature (C, H, W) as PNG, `side` x `side` pixels."""
    image = Image.fromarray(dnf_picture(dnf)).resize((side, side), Image.Resampling.LANCZOS)
    file = BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()
