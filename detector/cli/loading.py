"""What commands that load a bundle have in common: their options, and how one is named."""

from typing import TYPE_CHECKING

import click

from detector.bundle.files import Bundle
from detector.cli.errors import plain_errors

if TYPE_CHECKING:
    from detector.detector import Detector, Dtype

bundle_option = click.option(
    "--bundle", default="default", show_default=True, help="A folder, a shipped name, s3://... or a hub id."
)
device_option = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps."
)
dtype_option = click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    show_default=True,
    help="auto is bfloat16 on CUDA.",
)


def load(bundle: Bundle | str, device: str, dtype: "Dtype") -> "Detector":
    """Load a detector, or report in one line why that is impossible."""
    from detector.detector import Detector

    with plain_errors():
        return Detector.load(bundle, device=device, dtype=dtype)


def title(bundle: Bundle) -> str:
    """Return name and version, as from outside."""
    return f"{bundle.manifest.name} {bundle.manifest.version}"
