"""What is out of the domain: pictures that a score says little about."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from detector.bundle.thresholds import Thresholds
from detector.images.decode import decode
from detector.images.domain import SMALLEST_SIDE, doubt_of
from detector.images.doubt import confidence
from detector.policy import decide

Pixels = NDArray[np.uint8]
SAMPLES = Path(__file__).parents[3] / "worker" / "demo" / "samples"
SIDE = 512


def _flat(_: np.random.Generator) -> Pixels:
    return np.full((SIDE, SIDE, 3), (120, 80, 200), dtype=np.uint8)


def _ramp(_: np.random.Generator) -> Pixels:
    across = np.linspace(0, 255, SIDE)
    channels = [np.tile(across, (SIDE, 1)), np.tile(across[:, None], (1, SIDE)), np.full((SIDE, SIDE), 90.0)]
    return np.stack(channels, axis=2).astype(np.uint8)


def _noise(rng: np.random.Generator) -> Pixels:
    return rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def _weak_noise(rng: np.random.Generator) -> Pixels:
    return np.clip(128 + rng.normal(0, 5, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)


def _code(rng: np.random.Generator) -> Pixels:
    modules = rng.integers(0, 2, (41, 41), dtype=np.uint8) * 255
    return np.repeat(np.kron(modules, np.ones((12, 12), dtype=np.uint8))[:, :, None], 3, axis=2)


def _line_art(rng: np.random.Generator) -> Pixels:
    page = Image.new("RGB", (2 * SIDE, 2 * SIDE), "white")
    draw = ImageDraw.Draw(page)
    for _ in range(40):
        x, y = (int(value) for value in rng.integers(0, 2 * SIDE, 2))
        draw.ellipse([x, y, x + 200, y + 150], outline="black", width=4)
    return np.asarray(page.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def _text(rng: np.random.Generator, size: int) -> Pixels:
    page = Image.new("RGB", (SIDE, SIDE), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size)
    for top in range(5, SIDE, round(1.4 * size)):
        words = ["".join(map(chr, rng.integers(97, 123, rng.integers(2, 9)))) for _ in range(20)]
        draw.text((5, top), " ".join(words), fill=(30, 30, 30), font=font)
    return np.asarray(page)


def _jpeg(pixels: Pixels, quality: int) -> Pixels:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))


@pytest.mark.parametrize("quality", [None, 75, 40])
@pytest.mark.parametrize(
    "draw",
    [
        _flat,
        _ramp,
        _noise,
        _weak_noise,
        _code,
        _line_art,
        lambda rng: _text(rng, 11),
        lambda rng: _text(rng, 16),
        lambda rng: _text(rng, 28),
    ],
    ids=["flat", "ramp", "noise", "weak noise", "QR code", "line art", "small text", "text", "large text"],
)
def test_pictures_without_a_scene_are_out_of_the_domain(
    draw: Callable[[np.random.Generator], Pixels], quality: int | None
) -> None:
    """Lossless and as JPEG; none of them is ever called generated, whatever the score."""
    pixels = draw(np.random.default_rng(0))
    doubt = doubt_of(_jpeg(pixels, quality) if quality else pixels)
    assert doubt in {"too_plain", "two_tone", "uncorrelated"}
    assert confidence(doubt) == "out of domain"
    thresholds = Thresholds(review_from=0.4, generated_from=0.6)
    assert [decide(score, thresholds, doubt) for score in (0.1, 0.5, 0.99)] == ["real", "review", "review"]


def test_small_pictures_are_out_of_the_domain() -> None:
    """From 128 pixels on both sides the rest decides."""
    photograph = np.asarray(Image.open(SAMPLES / "real-coffee.jpg").convert("RGB"))
    assert doubt_of(photograph[:127]) == "too_small"
    assert doubt_of(photograph[:, :127]) == "too_small"
    assert doubt_of(photograph[:128, :128]) is None


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.jpg")), ids=lambda path: path.stem)
def test_photographs_and_generated_pictures_are_in_the_domain(path: Path) -> None:
    """The samples of the demonstration, also as JPEG of quality 60, and at half size if that is enough."""
    pixels = decode(path.read_bytes()).pixels
    height, width = (side // 2 for side in pixels.shape[:2])
    versions = [pixels, _jpeg(pixels, 60)]
    if min(height, width) >= SMALLEST_SIDE:
        versions.append(np.asarray(Image.fromarray(pixels).resize((width, height))))
    assert [doubt_of(version) for version in versions] == [None] * len(versions)
    assert confidence(None) == "in domain"
