"""The figure of the documentation and the command that draws it."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from deploy.generators.figure import draw_figure, examine_picture, magnitude_spectrum, main, radial_profile
from detector.cli.checking import CheckedFile, check_batches
from detector.detector import Detector

MakePicture = Callable[..., bytes]


@pytest.fixture
def pictures(tmp_path: Path, make_picture: MakePicture) -> dict[str, Path]:
    """Write a large picture, one smaller than a view and a file that is not a picture."""
    files = {
        "large": make_picture(1, size=(200, 150)),
        "small": make_picture(2, size=(40, 50)),
        "none": b"no picture",
    }
    for name, data in files.items():
        (tmp_path / f"real-{name}.jpg").write_bytes(data)
    return {name: tmp_path / f"real-{name}.jpg" for name in files}


def test_white_noise_of_unit_deviation_is_at_zero_decibels() -> None:
    """White noise is the spectrum's reference at every frequency; half the deviation is 6.02 dB less."""
    noise = np.random.default_rng(0).normal(size=(3, 512, 512)).astype(np.float32)
    assert np.abs(radial_profile(magnitude_spectrum(noise))[1]).max() < 0.5
    halved = magnitude_spectrum(noise / 2) - magnitude_spectrum(noise)
    np.testing.assert_allclose(halved, 20 * np.log10(0.5), atol=1e-3)


def test_a_wave_peaks_at_its_frequency() -> None:
    """A wave of 0.25 cycles per pixel is the peak of the profile and of the row through the middle."""
    wave = np.cos(np.pi / 2 * np.arange(128), dtype=np.float32)
    spectrum = magnitude_spectrum(np.tile(wave, (3, 128, 1)))
    assert set(np.argsort(spectrum[32])[-2:]) == {16, 48}
    frequencies, means = radial_profile(spectrum)
    assert frequencies[np.argmax(means)] == pytest.approx(0.25)
    assert frequencies[-1] == pytest.approx(0.5)


def test_the_figure_shows_the_score_that_a_check_gives(tiny_bundle: Path, pictures: dict[str, Path]) -> None:
    """The shown middle is two views wide if the picture is large enough, else one; the feature matches it."""
    detector = Detector.load(tiny_bundle, device="cpu")
    for name, side in [("large", 128), ("small", 64)]:
        shown = examine_picture(detector, pictures[name], generated=False)
        ((checked,),) = check_batches(detector, [pictures[name]])
        assert isinstance(checked, CheckedFile)
        assert (shown.name, shown.verdict) == (name, checked.verdict)
        assert shown.score == pytest.approx(checked.finding.probability, abs=1e-6)
        assert shown.middle.shape == (side, side, 3)
        assert shown.dnf.shape == (3, side, side)


def test_the_figure_grows_with_its_rows(tiny_bundle: Path, pictures: dict[str, Path]) -> None:
    """A photograph and a generated picture share a row, so one of each is as high as one alone."""
    detector = Detector.load(tiny_bundle, device="cpu")
    real, generated = (
        examine_picture(detector, pictures["large"], generated=truth) for truth in (False, True)
    )
    heights = [
        Image.open(io.BytesIO(draw_figure(shown, detector.bundle))).height
        for shown in ([real], [real, generated], [real, real, generated])
    ]
    assert heights[0] == heights[1] < heights[2]


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_the_command_writes_the_format_of_the_suffix(
    tiny_bundle: Path, pictures: dict[str, Path], tmp_path: Path, suffix: str
) -> None:
    """Both options can be repeated, and the output folder is created."""
    out = tmp_path / "made" / f"figure.{suffix}"
    options = ["--real", pictures["large"], "--real", pictures["small"], "--generated", pictures["large"]]
    result = CliRunner().invoke(main, [str(part) for part in [tiny_bundle, *options, "--out", out]])
    assert result.exit_code == 0, result.output
    assert "2 photographs, 1 generated pictures" in result.output
    assert Image.open(out).format == suffix.upper()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "x.png"], "give pictures with --real FILE and --generated FILE"),
        (["--real", "{large}", "--out", "x.jpg"], "--out must end in .png or .webp"),
        (["--generated", "{none}", "--out", "x.png"], "real-none.jpg: not_an_image"),
    ],
)
def test_wrong_usage_is_explained(
    tiny_bundle: Path, pictures: dict[str, Path], options: list[str], message: str
) -> None:
    """Exit status 2 and a reason, without a traceback."""
    filled = [option.format(**pictures) for option in options]
    result = CliRunner().invoke(main, [str(tiny_bundle), *filled])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_a_missing_bundle_is_named(pictures: dict[str, Path], tmp_path: Path) -> None:
    """The error names the bundle, as every other command's does."""
    arguments = [str(tmp_path / "nowhere"), "--real", str(pictures["large"]), "--out", "x.png"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "nowhere" in result.output
