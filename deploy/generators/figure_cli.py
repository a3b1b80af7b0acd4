"""dnf-detector figure."""

from io import BytesIO
from pathlib import Path

import click

_WEBP_QUALITY = 88

_file = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("bundle")
@click.option("--real", multiple=True, type=_file, metavar="FILE", help="A photograph; may be repeated.")
@click.option(
    "--generated", multiple=True, type=_file, metavar="FILE", help="A generated picture; may be repeated."
)
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help=".png or .webp")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
def figure(
    bundle: str, *, real: tuple[Path, ...], generated: tuple[Path, ...], out: Path, device: str
) -> None:
    """Draw pictures beside their noise feature and its spectrum, with BUNDLE's scores.

    The n-th photograph and the n-th generated picture share a row.
    """
    from PIL import Image

    from deploy.generators.figure import draw_figure, examine_picture
    from detector.bundle.files import BundleError
    from detector.detector import Detector
    from detector.images.decode import ImageRejectedError

    if not real and not generated:
        raise click.UsageError("give pictures with --real FILE and --generated FILE")
    if out.suffix not in {".png", ".webp"}:
        raise click.UsageError("--out must end in .png or .webp")
    try:
        detector = Detector.load(bundle, device=device)
    except BundleError as error:
        raise click.UsageError(f"{error.reason}: {error}") from error
    pictures = []
    for path, truth in [*((path, False) for path in real), *((path, True) for path in generated)]:
        try:
            pictures.append(examine_picture(detector, path, generated=truth))
        except ImageRejectedError as error:
            raise click.UsageError(f"{path}: {error.reason}: {error}") from error
    try:
        picture = draw_figure(pictures, detector.bundle)
    except ImportError as error:
        raise click.UsageError(f"{error.name} is missing: install the training extra") from error
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".png":
        out.write_bytes(picture)
    else:
        Image.open(BytesIO(picture)).convert("RGB").save(out, quality=_WEBP_QUALITY)
    written = out.stat().st_size
    click.echo(f"{out}: {len(real)} photographs, {len(generated)} generated pictures, {written:,} bytes")
