"""Training: the corpus, the chain that both classes go through, and a tiny round from pictures to bundle."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from detector.bundle import resolve
from detector.cli import main
from detector.manifest import ResNetConfig
from detector.training.augmentation import CodecChain
from detector.training.classifier import BalancedPictures, ClassifierTraining, train_classifier
from detector.training.corpus import CorpusRejected, Sample, grouped_split, read_corpus
from detector.training.unet import UnetTraining, build_unet, train_unet


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make forty pictures in the folder layout: noise is real, stripes are generated."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for index in range(20):
        noise = rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)
        stripes = np.tile((np.arange(96) // 4 % 2 * 200).astype(np.uint8)[None, :, None], (96, 1, 3))
        for pixels, place in ((noise, "real"), (np.roll(stripes, index, 1), f"generated/g{index % 2}")):
            (folder / place).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / place / f"{index}.png")
    return folder


def test_the_folder_layout_is_read(corpus: Path) -> None:
    """The folder says the label, the folder below it the family."""
    samples = read_corpus(corpus)
    assert len(samples) == 40
    assert sum(sample.generated for sample in samples) == 20
    assert {sample.family for sample in samples if sample.generated} == {"g0", "g1"}


def test_a_manifest_is_read_by_split(tmp_path: Path) -> None:
    """Only the rows of the split are listed, and pairs share a group."""
    with (tmp_path / "manifest.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "split", "label", "family", "pair"])
        rows.writerow(["a.jpg", "train", "real", "camera", "p1"])
        rows.writerow(["b.jpg", "train", "generated", "autoencoder", "p1"])
        rows.writerow(["c.jpg", "test", "real", "camera", ""])
    first, second = read_corpus(tmp_path, "train")
    assert first.group == second.group == "p1"
    assert [first.generated, second.generated] == [False, True]


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    """The error says what was looked for."""
    with pytest.raises(CorpusRejected, match=r"manifest\.csv"):
        read_corpus(tmp_path)


def test_a_pair_is_never_split(corpus: Path) -> None:
    """No group is on both sides, and both sides have both classes."""
    paired = [
        Sample(sample.path, sample.generated, sample.family, group=sample.path.stem)
        for sample in read_corpus(corpus)
    ]
    training, validation = grouped_split(paired, every=4)
    assert not {s.group for s in training} & {s.group for s in validation}
    assert len(training) + len(validation) == 40
    assert {s.generated for s in validation} == {s.generated for s in training} == {True, False}


def test_both_classes_go_through_the_same_chain() -> None:
    """The chain is not told the label: one picture under both labels gives the same crops."""
    pixels = np.random.default_rng(0).integers(0, 256, (120, 90, 3), dtype=np.uint8)
    first = CodecChain()(pixels, 64, np.random.default_rng(3))
    second = CodecChain()(pixels, 64, np.random.default_rng(3))
    assert first.shape == (64, 64, 3)
    np.testing.assert_array_equal(first, second)


def test_the_chain_takes_pictures_smaller_than_its_crop() -> None:
    """They are mirrored at their edges."""
    crop = CodecChain()(np.zeros((40, 50, 3), dtype=np.uint8), 64, np.random.default_rng(0))
    assert crop.shape == (64, 64, 3)


def test_batches_are_balanced_and_keep_pairs_together(corpus: Path) -> None:
    """Half of each batch is generated, and each paired picture comes with its twin."""
    samples = [
        Sample(sample.path, sample.generated, sample.family, group=sample.path.stem)
        for sample in read_corpus(corpus)
    ]
    recipe = ClassifierTraining(network=ResNetConfig(depth=18, width=8), size=32, batch=8)
    pictures, labels = next(iter(BalancedPictures(samples, recipe, np.random.default_rng(0))))
    assert pictures.shape == (8, 3, 32, 32)
    assert labels.tolist() == [1, 0] * 4


def test_training_goes_on_where_it_stopped(corpus: Path, tmp_path: Path) -> None:
    """A second run with more minutes keeps the first run's steps and adds to them."""
    recipe = UnetTraining(channels=(16, 16), size=32, batch=2, minutes=0.02)
    train_unet(read_corpus(corpus), tmp_path, recipe)
    before = torch.load(tmp_path / "training.pt", weights_only=True)["losses"]
    longer = UnetTraining(channels=(16, 16), size=32, batch=2, minutes=0.05)
    train_unet(read_corpus(corpus), tmp_path, longer)
    after = torch.load(tmp_path / "training.pt", weights_only=True)["losses"]
    assert len(after) > len(before) > 0
    assert after[: len(before)] == before


def test_the_u_net_learns_to_estimate_noise(corpus: Path, tmp_path: Path) -> None:
    """After 60 steps its loss is well below that of saying nothing, which is 1."""
    recipe = UnetTraining((16, 16), size=32, batch=4, minutes=10, max_steps=60, learning_rate=3e-3)
    train_unet(read_corpus(corpus), tmp_path, recipe)
    losses = torch.load(tmp_path / "training.pt", weights_only=True)["losses"]
    assert np.mean(losses[-10:]) < 0.9


def test_pictures_become_a_bundle_and_the_bundle_is_measured(corpus: Path, tmp_path: Path) -> None:
    """`train unet`, `train classifier` and `evaluate` work one after the other from the command line."""
    unet, work, out, figures = (str(tmp_path / name) for name in ("unet", "work", "bundle", "figures.json"))
    tiny = ["--size", "32", "--batch", "4"]
    build = CliRunner().invoke(
        main, ["train", "unet", str(corpus), "--out", unet, "--minutes", "0.05", *tiny, "--channels", "16,16"]
    )
    assert build.exit_code == 0, build.output
    options = ["--unet", unet, "--work", work, "--out", out, "--minutes", "0.05", *tiny]
    trained = CliRunner().invoke(main, ["train", "classifier", str(corpus), *options])
    assert trained.exit_code == 0, trained.output
    assert resolve(out).manifest.preprocessing.mode == "crop"
    measured = CliRunner().invoke(main, ["evaluate", out, str(corpus), "--out", figures, "--record", "own"])
    assert measured.exit_code == 0, measured.output
    assert "g1" in Path(figures).read_text()
    assert "auroc" in resolve(out).manifest.figures["own"]


def test_the_classifier_goes_on_where_it_stopped(corpus: Path, tmp_path: Path) -> None:
    """A second run in the same folder keeps the first run's losses and validation figures."""
    unet = build_unet((16, 16), 32)
    training, validation = grouped_split(read_corpus(corpus), every=4)

    def train(minutes: float) -> dict[str, list[object]]:
        network = ResNetConfig(depth=18, width=8)
        recipe = ClassifierTraining(network=network, size=32, batch=4, minutes=minutes)
        train_classifier(unet, training, validation, tmp_path, recipe)
        record: dict[str, list[object]] = json.loads((tmp_path / "losses.json").read_text())
        return record

    first, second = train(0.02), train(0.05)
    assert len(second["losses"]) > len(first["losses"]) > 0
    assert second["losses"][: len(first["losses"])] == first["losses"]
    assert second["validation"][: len(first["validation"])] == first["validation"]


def test_the_u_net_takes_any_size_that_its_levels_divide() -> None:
    """It is fully convolutional."""
    unet = build_unet((16, 32), 32)
    x = torch.zeros(1, 3, 64, 96)
    assert unet(x, torch.zeros(1, dtype=torch.long)).shape == x.shape
