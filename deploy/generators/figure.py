"""The figure of the documentation: pictures beside their noise feature and its spectrum.

`python -m deploy.generators.figure BUNDLE --real FILE --generated FILE --out FILE` draws it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detector.bundle.files import Bundle, BundleError
from detector.bundle.manifest import Feature, needs_unet
from detector.detector import Detector
from detector.images.decode import ImageRejectedError, decode
from detector.images.views import crops
from detector.policy import VerdictName, decide
from detector.terminal import echo

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _QUIET, _LINE = "#16191d", "#5c6570", "#dfe3e8"
_COLOURS: dict[VerdictName, str] = {"real": "#0f7b4f", "review": "#a15c00", "generated": "#c02637"}
_VERDICT_LABELS: dict[VerdictName, str] = {"real": "real", "review": "needs review", "generated": "generated"}
_HEADINGS = {False: "Photographs", True: "Generated pictures"}
_DNF_TITLE = "The Diffusion Noise Feature (DNF)"
_TITLES: dict[Feature, str] = {
    "rgb": "The picture itself (RGB), as a baseline",
    "npr": "Neighbouring-pixel residuals (NPR), as a baseline",
}
_DNF_MEANING = (
    "A diffusion U-Net has learned to estimate the noise in noisy photographs. Given a clean picture it "
    "still answers: with the picture's finest grain and edges, and with what cameras, encoders and "
    "generators left in them. "
)
_DNF_ALONE = "A ResNet judges that answer, never the picture."
_DNF_BESIDE_OTHERS = "One ResNet judges that answer, others the picture itself."

# The figure's geometry, in inches.
_CELL, _GAP, _MIDDLE, _MARGIN = 1.95, 0.1, 0.5, 0.4
_HEAD, _CAPTION, _PROFILE, _FOOT = 2.0, 0.46, 2.3, 0.9
_SIDE = 3 * _CELL + 2 * _GAP
_WIDTH = 2 * _MARGIN + 2 * _SIDE + _MIDDLE

_TILE = 64
_MAX_NAME_LENGTH = 34


@dataclass(frozen=True)
class ExaminedPicture:
    """A picture and everything that the figure shows of it."""

    #: Caption, from the file's name.
    name: str
    #: Ground truth.
    generated: bool
    #: Calibrated probability of *generated* for the whole picture, 0..1.
    score: float
    verdict: VerdictName
    #: The part of the picture that is shown, (R, R, 3).
    middle: NDArray[np.uint8]
    #: Feature of this part, (3, R, R).
    dnf: NDArray[np.float32]
    #: Magnitude spectrum of the feature in dB, (T, T).
    spectrum: NDArray[np.float64]


def examine_picture(detector: Detector, path: Path, *, generated: bool) -> ExaminedPicture:
    """Score one file and compute the feature of its middle. Raises `ImageRejectedError` and OSError."""
    import torch

    pixels = decode(path.read_bytes()).pixels
    manifest = detector.bundle.manifest
    prepared = detector.prepare(pixels)
    score = detector.examine([prepared])[0].probability
    if manifest.preprocessing.mode == "crop":
        # Two views wide where the picture allows it, so that its subject can be recognised.
        size = manifest.preprocessing.size
        size *= 2 if min(pixels.shape[:2]) >= 2 * size else 1
        views: NDArray[Any] = crops(pixels, size, 1)
        middle = views[0]
    else:
        views = prepared.views
        middle = np.clip((views[0].transpose(1, 2, 0) + 1) * 127.5 + 0.5, 0, 255).astype(np.uint8)
    with torch.inference_mode():
        dnf = detector.feature(torch.from_numpy(views))[0, :3].cpu().numpy()
    stem = path.stem.removeprefix("generated-" if generated else "real-").replace("-", " ").replace("_", " ")
    return ExaminedPicture(
        name=stem if len(stem) <= _MAX_NAME_LENGTH else f"{stem[:_MAX_NAME_LENGTH]}…",
        generated=generated,
        score=score,
        verdict=decide(score, manifest.thresholds),
        middle=middle,
        dnf=dnf,
        spectrum=magnitude_spectrum(dnf, min(_TILE, dnf.shape[-1])),
    )


def magnitude_spectrum(feature: NDArray[np.float32], tile: int = _TILE) -> NDArray[np.float64]:
    """Return the magnitude spectrum of a feature (C, R, R), R >= `tile`, as (tile, tile) in dB.

    Welch's method (1967): the mean power over channels and half-overlapping tiles, with the zero frequency in
    the middle. White noise of unit standard deviation is at 0 dB.
    """
    window = np.outer(np.hanning(tile), np.hanning(tile))
    starts = range(0, feature.shape[-1] - tile + 1, tile // 2)
    tiles = np.stack([feature[:, y : y + tile, x : x + tile] for y in starts for x in starts])
    power = np.mean(np.abs(np.fft.fft2(tiles * window)) ** 2, axis=(0, 1)) / np.sum(window**2)
    spectrum: NDArray[np.float64] = 10 * np.log10(np.maximum(np.fft.fftshift(power), 1e-12))
    return spectrum


def radial_profile(spectrum: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Average a spectrum (T, T) over directions; return frequencies (cycles per pixel, up to 0.5) and dB."""
    size = len(spectrum)
    axis = np.arange(size) - size // 2
    rings = np.rint(np.hypot(axis[:, None], axis)).astype(int)
    inside = rings <= size // 2
    power = np.bincount(rings[inside], 10 ** (spectrum[inside] / 10)) / np.bincount(rings[inside])
    return np.arange(len(power)) / size, 10 * np.log10(power)


def draw_figure(pictures: Sequence[ExaminedPicture], bundle: Bundle) -> bytes:
    """Draw photographs on the left and generated pictures on the right; return the figure as PNG.

    All spectra share one colour scale. Raises ImportError without matplotlib.
    """
    from matplotlib.figure import Figure

    sides = {truth: [p for p in pictures if p.generated == truth] for truth in (False, True)}
    rows = max(map(len, sides.values()))
    height = _HEAD + rows * (_CELL + _CAPTION) + _PROFILE + _FOOT
    figure = Figure(figsize=(_WIDTH, height), dpi=110, facecolor="white")
    feature = bundle.manifest.feature
    shown = _shown(feature)
    _write(figure, _MARGIN, 0.42, _TITLES.get(feature, _DNF_TITLE), size=20, bold=True)
    if needs_unet(feature):
        judged = _DNF_ALONE if feature == "dnf" else _DNF_BESIDE_OTHERS
        for line, text in enumerate(wrap(_DNF_MEANING + judged, 142)):
            _write(figure, _MARGIN, 0.82 + 0.25 * line, text, size=12, colour=_QUIET)
    levels = np.concatenate([picture.spectrum.ravel() for picture in pictures])
    low, high = np.percentile(levels, [1, 99])
    for truth, side in sides.items():
        left = _MARGIN + truth * (_SIDE + _MIDDLE)
        colour = _COLOURS["generated" if truth else "real"]
        _write(figure, left, _HEAD - 0.45, _HEADINGS[truth], size=14, bold=True, colour=colour)
        for column, heading in enumerate(("picture", shown, f"spectrum of the {shown}")):
            _write(figure, left + column * (_CELL + _GAP), _HEAD - 0.15, heading, size=10.5, colour=_QUIET)
        for row, picture in enumerate(side):
            _draw_row(figure, left, _HEAD + row * (_CELL + _CAPTION), picture, (low, high))
    _draw_profiles(figure, pictures, _HEAD + rows * (_CELL + _CAPTION) + 0.3)
    for line, text in enumerate(wrap(_notes(bundle), 184)):
        _write(figure, _MARGIN, height - _FOOT + 0.3 + 0.2 * line, text, size=10, colour=_QUIET)
    file = BytesIO()
    figure.savefig(file, format="png", pil_kwargs={"optimize": True})
    return file.getvalue()


def _draw_row(
    figure: "Figure", left: float, top: float, picture: ExaminedPicture, levels: tuple[float, float]
) -> None:
    shown, feature, spectrum = (
        _axes(figure, left + column * (_CELL + _GAP), top, _CELL, _CELL) for column in range(3)
    )
    shown.imshow(picture.middle, interpolation="antialiased")
    feature.imshow(_contrasted(picture.dnf), interpolation="antialiased")
    spectrum.imshow(picture.spectrum, cmap="magma", vmin=levels[0], vmax=levels[1], interpolation="bilinear")
    below = top + _CELL + 0.16
    words = f"score {picture.score:.3f}, {_VERDICT_LABELS[picture.verdict]}"
    _write(figure, left, below, picture.name, size=11)
    _write(
        figure,
        left + _SIDE,
        below,
        words,
        size=11,
        bold=True,
        colour=_COLOURS[picture.verdict],
        align="right",
    )


def _contrasted(dnf: NDArray[np.float32]) -> NDArray[np.float64]:
    """Map the first estimate to (R, R, 3) in 0..1 around grey, with more contrast than a thumbnail."""
    first = dnf[:3].transpose(1, 2, 0)
    picture: NDArray[np.float64] = np.clip(0.5 + first / (5 * max(float(first.std()), 1e-6)), 0, 1)
    return picture


def _draw_profiles(figure: "Figure", pictures: Sequence[ExaminedPicture], top: float) -> None:
    _write(figure, _MARGIN, top, "The same spectra, averaged over directions", size=10.5, colour=_QUIET)
    axes = _axes(figure, _MARGIN + 0.5, top + 0.15, _WIDTH - 2 * _MARGIN - 0.5, _PROFILE - 0.8)
    axes.set_axis_on()
    labels = dict(_HEADINGS)
    for picture in sorted(pictures, key=lambda picture: picture.generated):
        colour = _COLOURS["generated" if picture.generated else "real"]
        frequencies, means = radial_profile(picture.spectrum)
        # The first two rings are left out: the window leaks the mean into them.
        axes.plot(
            frequencies[2:], means[2:], color=colour, linewidth=1.6, label=labels.pop(picture.generated, "_")
        )
    axes.set_xlim(0, 0.5)
    axes.set_xlabel("spatial frequency, cycles per pixel: from coarse to fine", fontsize=10.5)
    axes.set_ylabel("magnitude, dB", fontsize=10.5)
    axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1.01, 0.97), fontsize=10.5)
    axes.grid(color=_LINE, linewidth=0.7)
    axes.tick_params(labelsize=10, colors=_QUIET, length=0)
    axes.spines[:].set_visible(False)


def _notes(bundle: Bundle) -> str:
    manifest = bundle.manifest
    feature, size = _shown(manifest.feature), manifest.preprocessing.size
    shown = (
        "the picture squashed to a square"
        if manifest.preprocessing.mode == "squash"
        else "the middle of the picture at its own scale"
    )
    views = manifest.preprocessing.views
    seen = f"{views} view{'s' if views > 1 else ''} of {size} x {size} pixels"
    return (
        f"Shown is {shown}. {feature}: grey is zero; each is scaled by its own standard deviation. "
        "Spectrum: low frequencies in the middle, one scale for all; 0 dB is white noise of unit deviation. "
        f"Score: the calibrated probability of generated, from "
        f"{seen}, by {manifest.name} {manifest.version}. A score is a signal, not proof."
    )


def _axes(figure: "Figure", left: float, top: float, width: float, height: float) -> "Axes":
    across, down = figure.get_size_inches()
    axes = figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))
    axes.set_axis_off()
    return axes


def _write(
    figure: "Figure",
    left: float,
    middle: float,
    text: str,
    *,
    size: float,
    bold: bool = False,
    colour: str = _INK,
    align: str = "left",
) -> None:
    across, down = figure.get_size_inches()
    weight = "bold" if bold else "normal"
    place = (left / across, 1 - middle / down)
    figure.text(*place, text, size=size, weight=weight, color=colour, ha=align, va="center")


def _shown(feature: Feature) -> str:
    return "DNF" if needs_unet(feature) else feature.upper()


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
def main(bundle: str, *, real: tuple[Path, ...], generated: tuple[Path, ...], out: Path, device: str) -> None:
    """Draw pictures beside their noise feature and its spectrum, with BUNDLE's scores.

    The n-th photograph and the n-th generated picture share a row.
    """
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
        figure = draw_figure(pictures, detector.bundle)
    except ImportError as error:
        raise click.UsageError(f"{error.name} is missing: install the training extra") from error
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".png":
        out.write_bytes(figure)
    else:
        Image.open(BytesIO(figure)).convert("RGB").save(out, quality=_WEBP_QUALITY)
    size = out.stat().st_size
    echo(f"{out}: {len(real)} photographs, {len(generated)} generated pictures, {size:,} bytes")


if __name__ == "__main__":
    main()
