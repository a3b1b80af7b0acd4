"""dnf-detector dnf: the noise feature itself."""

from pathlib import Path

import click
import numpy as np
from PIL import Image

from detector.cli.errors import WrongUsageError
from detector.cli.loading import bundle_option, device_option, dtype_option, load
from detector.detector import Dtype
from detector.images.decode import ImageRejectedError, decode
from detector.images.thumbnail import dnf_picture, saved_picture
from detector.terminal import echo


@click.command(epilog="Example: dnf-detector dnf photo.jpg --out feature.npy")
@click.argument("image", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@bundle_option
@device_option
@dtype_option
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help=".npy or .png")
def dnf(image: Path, *, bundle: str, device: str, dtype: Dtype, out: Path) -> None:
    """Compute the noise feature of one picture.

    An .npy file holds float32 (C, S, S). A .png file shows signed values around grey; for a bundle that
    quantises, it is the picture that the published pipeline saves.
    """
    if out.suffix not in {".npy", ".png"}:
        raise WrongUsageError("--out must end in .npy or .png")
    try:
        picture = decode(image.read_bytes())
    except ImageRejectedError as error:
        raise click.ClickException(f"{image}: {error.reason}: {error}") from error
    detector = load(bundle, device, dtype)
    feature = detector.examine([detector.prepare(picture)])[0].dnf
    if out.suffix == ".npy":
        np.save(out, feature)
    else:
        shown = saved_picture if detector.bundle.manifest.dnf.quantise else dnf_picture
        Image.fromarray(shown(feature)).save(out)
    echo(f"{out}: {feature.shape}, mean {feature.mean():.4f}, deviation {feature.std():.4f}")
