"""A noise feature as a picture for people."""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: The media type of a thumbnail, the suffix of its file, and its first bytes.
CONTENT_TYPE, SUFFIX, SIGNATURE = "image/jpeg", ".jpg", b"\xff\xd8\xff"


def dnf_picture(dnf: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Render a signed feature (C, H, W), C >= 3, as (H, W, 3) uint8 from -4 to 4 deviations; zero is grey.

    The contrast follows each feature's own standard deviation, so pictures cannot be compared in brightness.
    """
    first = dnf[:3]
    deviation = max(float(first.std()), 1e-6)
    picture: NDArray[np.uint8] = np.clip(127.5 + first * (127.5 / (4 * deviation)), 0, 255).astype(np.uint8)
    return picture.transpose(1, 2, 0)


def saved_picture(dnf: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Render a feature (C, H, W) as the published pipeline saves it, (H, W, 3) uint8: negative is black."""
    picture: NDArray[np.uint8] = np.clip(dnf[:3] * 255 + 0.5, 0, 255).astype(np.uint8)
    return picture.transpose(1, 2, 0)


def dnf_thumbnail(dnf: NDArray[np.float32], side: int = 128) -> bytes:
    """Return `dnf_picture` of a feature (C, H, W) as a JPEG file of `side` x `side` pixels."""
    # From planes, whose pixels are not scattered.
    image = Image.merge("RGB", [Image.fromarray(plane) for plane in dnf_picture(dnf).transpose(2, 0, 1)])
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.LANCZOS)
    file = BytesIO()
    # Colours at full resolution: halved, as lossy WebP stores them too, they lose most of the noise.
    image.save(file, "JPEG", quality=90, subsampling="4:4:4")
    return file.getvalue()
