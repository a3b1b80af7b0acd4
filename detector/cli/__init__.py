"""dnf-detector: check pictures, compute features, inspect, convert, train, evaluate and benchmark bundles."""

import sys

import click

from detector.terminal import Group, LazyCommand

_COMMANDS = {
    "check": LazyCommand("detector.cli.check", "check", "Check files, and all pictures in folders"),
    "dnf": LazyCommand("detector.cli.feature", "dnf", "Compute the noise feature of one picture"),
    "inspect": LazyCommand(
        "detector.cli.inspect", "inspect", "Show a bundle's manifest and figures, and verify its digests"
    ),
    "crossvalidate": LazyCommand(
        "detector.cli.crossvalidate",
        "crossvalidate",
        "Measure a recipe on generators and photo sources that it was not trained on",
    ),
    "evaluate": LazyCommand("detector.cli.evaluate", "evaluate", "Measure a bundle on a labelled corpus"),
    "bench": LazyCommand("detector.cli.bench", "bench", "Measure the speed of BUNDLE"),
    "train": LazyCommand("detector.cli.train", "train", "Train a detector on a corpus"),
    "refit": LazyCommand(
        "detector.cli.refit", "refit", "Fit a bundle's calibration and thresholds to decisions"
    ),
    "convert": LazyCommand("detector.cli.convert", "convert", "Convert the paper's checkpoints to a bundle"),
}


@click.group(cls=Group, lazy=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dnf-moderation")
def main() -> None:
    """Tell photographs from AI-generated pictures by their Diffusion Noise Feature."""
    import structlog

    # Standard output has the results. The stream is looked up at each event, since a test may replace it.
    structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))
