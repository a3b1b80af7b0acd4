"""dnf-worker demo: everything on this machine."""

import sys
from pathlib import Path

import click


@click.command(epilog="\b\nExample:\n  dnf-worker demo --keep")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo"),
    show_default=True,
    help="Folder for the contact sheet and the worker's log.",
)
@click.option("--bundle", default="default", show_default=True, help="Detector bundle: a name or a folder.")
@click.option("--keep", is_flag=True, help="Keep everything running until Ctrl-C, with the review page.")
def demo(*, out: Path, bundle: str, keep: bool) -> None:
    """Start broker, object store and worker on this machine, judge sample pictures, show the verdicts."""
    from worker.demo.demonstration import run_demo

    sys.exit(run_demo(keep=keep, out=out, bundle=bundle))
