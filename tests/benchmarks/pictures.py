"""Pictures of the sizes that platforms have."""

import io
from importlib.resources import files

import numpy as np
from PIL import Image

#: Width and height in pixels, by name: what a platform stores after its own scaling, and what a phone takes.
SIZES = {"512": (512, 512), "12mp": (4032, 3024)}

# Grey levels of a phone's grain; the file then has the 2 to 5 MB of a phone's.
_GRAIN = 4.0
_PHONE_PIXELS = 1 << 22


def jpeg(name: str) -> bytes:
    """Return a photograph as JPEG (quality 90, 4:2:0) in one of `SIZES`."""
    width, height = SIZES[name]
    sample = files("worker.demo") / "samples" / "real-coffee.jpg"
    with Image.open(io.BytesIO(sample.read_bytes())) as photograph:
        image = photograph.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    if width * height >= _PHONE_PIXELS:
        grain = np.random.default_rng(0).normal(0, _GRAIN, (height, width, 1)).astype(np.float32)
        image = Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))
    image.save(file := io.BytesIO(), "JPEG", quality=90)
    return file.getvalue()
