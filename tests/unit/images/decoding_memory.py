"""Prints what decoding takes, what is reserved for it, and what becomes of it with less."""

import ctypes
import io
import resource
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from detector.benchmark.speed import peak_memory_bytes, reset_peak_memory
from detector.images.decode import EncodedPicture, ImageRejectedError, decode, open_picture

SIZE = (2400, 2000)


def _file(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def files() -> dict[str, bytes]:
    """Return pictures of 4.8 megapixels in every format and mode that is decoded in its own way."""
    grey = Image.linear_gradient("L").resize(SIZE)
    colour = Image.merge("RGB", [grey, grey.transpose(Image.Transpose.ROTATE_180), grey])
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    alpha = colour.copy()
    alpha.putalpha(grey)
    palette = colour.quantize(64, method=Image.Quantize.FASTOCTREE)
    return {
        "PNG of 1 bit": _file(grey.convert("1"), "PNG", compress_level=1),
        "PNG, grey": _file(grey, "PNG", compress_level=1),
        "PNG, grey, 16 bits": _file(deep, "PNG", compress_level=1),
        "PNG, grey with alpha": _file(alpha.convert("LA"), "PNG", compress_level=1),
        "PNG with a palette": _file(palette, "PNG", compress_level=1),
        "PNG with a transparent palette": _file(palette, "PNG", compress_level=1, transparency=3),
        "PNG, colour, with a profile": _file(colour, "PNG", compress_level=1, icc_profile=profile),
        "PNG, colour with alpha": _file(alpha, "PNG", compress_level=1),
        "JPEG, grey": _file(grey, "JPEG"),
        "JPEG, sideways": _file(colour, "JPEG", exif=exif),
        "JPEG without its end mark": _file(colour, "JPEG")[:-2],
        "JPEG, progressive": _file(colour, "JPEG", progressive=True, subsampling=0),
        "JPEG, progressive, subsampled": _file(colour, "JPEG", progressive=True, subsampling=2),
        "JPEG for print": _file(colour.convert("CMYK"), "JPEG"),
        "JPEG for print, progressive": _file(colour.convert("CMYK"), "JPEG", progressive=True),
        "GIF": _file(palette, "GIF"),
        "WebP": _file(colour, "WEBP", method=0),
        "WebP with alpha": _file(alpha, "WEBP", method=0),
        "WebP without loss": _file(colour, "WEBP", lossless=True, method=0, quality=0),
        "WebP, animated": _file(colour, "WEBP", method=0, save_all=True, append_images=[grey.convert("RGB")]),
        "AVIF": _file(colour, "AVIF", speed=10),
        "AVIF with alpha, 4:4:4": _file(alpha, "AVIF", speed=10, subsampling="4:4:4"),
    }


def starved(encoded: EncodedPicture, part: float) -> str:
    """Decode in an address space that has room for only a part of what is reserved; return the outcome."""
    in_use = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + int(part * encoded.memory_bytes), hard))
    try:
        encoded.decode()
    except MemoryError:
        return "memory"
    except ImageRejectedError as rejected:
        return rejected.reason
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    return "pixels"


def main() -> None:
    """Print for each picture its kind, the bytes taken and reserved, and the outcomes with less memory."""
    allocator = ctypes.CDLL("libc.so.6")
    made = files()
    for kind in ("PNG", "AVIF"):
        decode(_file(Image.new("RGB", (64, 64)), kind))
    for name, data in made.items():
        allocator.malloc_trim(0)
        reset_peak_memory("cpu")
        before = peak_memory_bytes()
        encoded = open_picture(data)
        encoded.decode()
        taken = peak_memory_bytes() - before
        outcomes = [starved(encoded, part) for part in (0.0, 0.3, 0.6)]
        sys.stdout.write(f"{name}\t{taken}\t{encoded.memory_bytes}\t{','.join(outcomes)}\n")


if __name__ == "__main__":
    main()
