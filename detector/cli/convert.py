"""dnf-detector convert: the paper's checkpoints as a bundle."""

from pathlib import Path

import click

from detector.cli.errors import plain_errors
from detector.cli.loading import title
from detector.terminal import echo

_existing = click.Path(exists=True, path_type=Path)


@click.command(
    epilog="""\b
Example:
  dnf-detector convert --ddim model.ckpt --unet-config bedroom.json --classifier authors.pth --out paper
"""
)
@click.option("--ddim", required=True, type=_existing, help="U-Net state dict with the DDIM authors' names.")
@click.option("--unet-config", required=True, type=_existing, help="The U-Net's configuration, as JSON.")
@click.option("--classifier", required=True, type=_existing, help='State dict, or {"model": state dict}.')
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="New folder.")
@click.option("--name", help="The bundle's name; the folder's by default.")
def convert(ddim: Path, unet_config: Path, classifier: Path, out: Path, name: str | None) -> None:
    """Convert the paper's checkpoints to a bundle, with the paper's preprocessing and quantisation."""
    from detector.networks.conversion import convert as convert_checkpoints

    with plain_errors():
        bundle = convert_checkpoints(ddim, unet_config, classifier, out, name=name)
    echo(f"{bundle.folder}: {title(bundle)}, digest {bundle.digest}")
