"""dnf-detector inspect: what a bundle says about itself."""

from typing import Any

import click

from detector.bundle.files import resolve
from detector.cli.errors import plain_errors
from detector.cli.loading import title
from detector.terminal import Console, echo_json, escaped


@click.command(epilog="Example: dnf-detector inspect default")
@click.argument("bundle")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest and its digest as one JSON object.")
def inspect(bundle: str, *, as_json: bool) -> None:
    """Show a bundle's manifest and figures, and verify its digests."""
    with plain_errors():
        found = resolve(bundle)
    manifest = found.manifest.model_dump(mode="json")
    if as_json:
        echo_json(manifest | {"digest": found.digest}, indent=2)
        return
    console = Console(markup=False, highlight=False, soft_wrap=True)
    console.print(escaped(f"{title(found)}, created {found.manifest.created}"), style="bold")
    console.print(f"digest {found.digest}")
    for section in ("preprocessing", "dnf", "unet", "classifier", "calibration", "thresholds", "provenance"):
        console.print(f"{section:<15}{_inline(manifest[section])}")
    for name, values in manifest["figures"].items():
        console.print(f"{escaped(name):<15}{_inline(values)}")
    console.print("files, SHA-256 verified:")
    for name, digest in found.manifest.files.items():
        console.print(f"{digest} {(found.folder / name).stat().st_size:>13,} bytes  {escaped(name)}")


def _inline(values: dict[str, Any] | None) -> str:
    return (
        "none" if values is None else escaped(", ".join(f"{name} {value}" for name, value in values.items()))
    )
