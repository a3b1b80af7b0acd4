"""Batches: balance, pairs, augmentation and loaders."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from detector.corpus.corpus import Sample, read_corpus
from detector.images.decode import decode
from detector.training.augmentation import CodecChain
from detector.training.batches import BalancedPictures, batches_from

Pixels = NDArray[np.uint8]


def _missing_picture(index: int) -> bytes:
    return Path(f"no-such-picture-{index}.png").read_bytes()


def ks_distance(first: list[float], second: list[float]) -> float:
    """Return the largest gap between two empirical distributions, 0..1 (Kolmogorov and Smirnov)."""
    places = np.sort(np.concatenate([first, second]))
    below = [
        np.searchsorted(np.sort(values), places, side="right") / len(values) for values in (first, second)
    ]
    return float(np.abs(below[0] - below[1]).max())


def _pairs(corpus: Path) -> list[Sample]:
    return [
        Sample(sample.path, sample.generated, sample.family, group=sample.path.stem, pair=sample.path.stem)
        for sample in read_corpus(corpus)
    ]


def test_batches_are_balanced_and_keep_pairs_together(corpus: Path) -> None:
    """Half of each batch is generated, and each generated picture of a pair is next to its photograph."""
    seen: list[int] = []

    def brightness(pixels: Pixels, size: int, rng: Generator) -> Pixels:
        del rng
        seen.append(round(float(pixels.mean())))
        return pixels[:size, :size]

    samples = _pairs(corpus)
    of_pair = {s.pair: [round(float(decode(s.path.read_bytes()).pixels.mean()))] for s in samples}
    for sample in samples:
        of_pair[sample.pair].append(round(float(decode(sample.path.read_bytes()).pixels.mean())))
    batch = BalancedPictures(samples, brightness, size=32, batch=8, seed=0).batch(0)
    assert batch.pictures.shape == (8, 32, 32, 3)
    assert batch.labels.tolist() == [1, 0] * 4
    for generated, real in zip(seen[::2], seen[1::2], strict=True):
        assert any({generated, real} <= set(values) for values in of_pair.values())


def test_both_pictures_of_a_pair_get_the_same_augmentation(tmp_path: Path) -> None:
    """A pair of equal pixels stays equal, so only the generator's changes can tell a pair apart."""
    pixels = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    for name in ("real", "generated"):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    samples = [
        Sample(tmp_path / "real.png", generated=False, family="camera", group="p", pair="p"),
        Sample(tmp_path / "generated.png", generated=True, family="autoencoder", group="p", pair="p"),
    ]
    pictures = BalancedPictures(samples, CodecChain(), size=64, batch=8, seed=5).batch(0).pictures
    np.testing.assert_array_equal(pictures[::2], pictures[1::2])
    assert len({picture.tobytes() for picture in pictures}) == 4


def test_both_classes_are_augmented_alike(tmp_path: Path) -> None:
    """The same pixels with both labels, unpaired: over many batches both classes are equally sharp."""
    pixels = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    for name in ("real", "generated"):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "same.png")
    batches = BalancedPictures(read_corpus(tmp_path), CodecChain(), size=64, batch=20, seed=3)
    pictures = np.concatenate([batches.batch(index).pictures for index in range(30)]).astype(np.float64)
    edges = np.abs(np.diff(pictures, axis=2)).mean(axis=(1, 2, 3)).tolist()
    sharpness = edges[::2], edges[1::2]
    assert ks_distance(*sharpness) < 0.12


@pytest.mark.parametrize("loaders", [1, 2])
def test_a_batch_does_not_depend_on_where_a_run_starts(corpus: Path, loaders: int) -> None:
    """Batch 3 is the same whether or not batches 0 to 2 were drawn, and for any number of loaders."""
    pictures = BalancedPictures(read_corpus(corpus), CodecChain(), size=32, batch=4, seed=2)
    resumed = next(batches_from(pictures.batch, 3))
    uninterrupted = list(islice(batches_from(pictures.batch, 0, loaders), 4))[3]
    np.testing.assert_array_equal(resumed.pictures, uninterrupted.pictures)
    np.testing.assert_array_equal(resumed.labels, uninterrupted.labels)


@pytest.mark.parametrize("loaders", [1, 2])
def test_an_error_in_a_loader_is_raised_in_the_training(loaders: int) -> None:
    """A picture that was deleted raises an error instead of blocking the training."""
    with pytest.raises(FileNotFoundError):
        next(batches_from(_missing_picture, 0, loaders))


def test_content_does_not_predict_the_label(tmp_path: Path) -> None:
    """Nine in ten generated pictures are art, nine in ten photographs faces; half of each drawn are art."""
    samples = []
    for label in ("real", "generated"):
        for index in range(10):
            art = (index > 0) == (label == "generated")
            path = tmp_path / f"{label}-{index}.png"
            Image.new("RGB", (64, 64), (200, 0, 0) if art else (0, 0, 200)).save(path)
            content = "art" if art else "faces"
            samples.append(Sample(path, label == "generated", label, path.name, content=content))
    chain = CodecChain(downscale=0, blur=0, encode=0)
    pictures = BalancedPictures(samples, chain, size=32, batch=400, seed=1).batch(0).pictures
    art = pictures[:, 0, 0, 0] > 100
    for drawn in (art[::2], art[1::2]):
        # Four standard deviations of 200 draws.
        assert abs(drawn.mean() - 0.5) < 4 * 0.5 / 200**0.5
