"""Training: the corpus, the chain that both classes go through, and a tiny round from pictures to bundle."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file

from detector.bundle.files import resolve
from detector.bundle.manifest import ResNetConfig
from detector.cli import main
from detector.corpus.corpus import Sample, grouped_split, read_corpus
from detector.images.decode import decode
from detector.networks.unet import load_unet, save_unet
from detector.training.augmentation import CodecChain
from detector.training.bank import FeatureBank
from detector.training.batches import BalancedPictures
from detector.training.classifier import train_classifier
from detector.training.prefetch import drawn
from detector.training.recipe import ClassifierTraining, SquashAndFlip, paper_recipe
from detector.training.unet import UnetTraining, build_unet, train_unet

Pixels = NDArray[np.uint8]


def _gone(index: int) -> bytes:
    return Path(f"no-such-picture-{index}.png").read_bytes()


def ks_distance(first: list[float], second: list[float]) -> float:
    """Return the largest gap between two empirical distributions, 0..1 (Kolmogorov and Smirnov)."""
    places = np.sort(np.concatenate([first, second]))
    below = [
        np.searchsorted(np.sort(values), places, side="right") / len(values) for values in (first, second)
    ]
    return float(np.abs(below[0] - below[1]).max())


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


def _pairs(corpus: Path) -> list[Sample]:
    return [
        Sample(sample.path, sample.generated, sample.family, group=sample.path.stem, pair=sample.path.stem)
        for sample in read_corpus(corpus)
    ]


def test_batches_are_balanced_and_keep_pairs_together(corpus: Path) -> None:
    """Half of each batch is generated, and each paired picture stands beside its twin."""
    drawn: list[int] = []

    def brightness(pixels: Pixels, size: int, rng: Generator) -> Pixels:
        del rng
        drawn.append(round(float(pixels.mean())))
        return pixels[:size, :size]

    samples = _pairs(corpus)
    of_pair = {s.pair: [round(float(decode(s.path.read_bytes()).pixels.mean()))] for s in samples}
    for sample in samples:
        of_pair[sample.pair].append(round(float(decode(sample.path.read_bytes()).pixels.mean())))
    batch = BalancedPictures(samples, brightness, size=32, batch=8, seed=0).batch(0)
    assert batch.pictures.shape == (8, 32, 32, 3)
    assert batch.labels.tolist() == [1, 0] * 4
    for generated, real in zip(drawn[::2], drawn[1::2], strict=True):
        assert any({generated, real} <= set(values) for values in of_pair.values())


def test_twins_get_one_history(tmp_path: Path) -> None:
    """A pair of the same pixels stays a pair of the same pixels: only a generator could tell them apart."""
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


def test_both_classes_live_through_the_same_histories(tmp_path: Path) -> None:
    """The same pixels under both labels, unpaired: over many batches the classes are equally sharp."""
    pixels = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    for name in ("real", "generated"):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "same.png")
    drawer = BalancedPictures(read_corpus(tmp_path), CodecChain(), size=64, batch=20, seed=3)
    pictures = np.concatenate([drawer.batch(index).pictures for index in range(30)]).astype(np.float64)
    edges = np.abs(np.diff(pictures, axis=2)).mean(axis=(1, 2, 3)).tolist()
    sharpness = edges[::2], edges[1::2]
    assert ks_distance(*sharpness) < 0.12


@pytest.mark.parametrize("loaders", [1, 2])
def test_a_batch_is_the_same_wherever_a_run_begins(corpus: Path, loaders: int) -> None:
    """Batch 3 does not depend on whether batches 0 to 2 were drawn, nor on how many processes draw."""
    pictures = BalancedPictures(read_corpus(corpus), CodecChain(), size=32, batch=4, seed=2)
    resumed = next(drawn(pictures.batch, 3))
    unbroken = list(islice(drawn(pictures.batch, 0, loaders), 4))[3]
    np.testing.assert_array_equal(resumed.pictures, unbroken.pictures)
    np.testing.assert_array_equal(resumed.labels, unbroken.labels)


@pytest.mark.parametrize("loaders", [1, 2])
def test_an_error_while_batches_are_drawn_ends_the_training(loaders: int) -> None:
    """A picture that went away is an error of the step that wanted it, not a training that waits for ever."""
    with pytest.raises(FileNotFoundError):
        next(drawn(_gone, 0, loaders))


def test_a_unet_does_not_say_where_it_was_loaded_from(tmp_path: Path) -> None:
    """Whoever gets a bundle learns nothing of the disk that it was trained on."""
    save_unet(build_unet((16, 32), 64), tmp_path / "first")
    save_unet(load_unet(str(tmp_path / "first")), tmp_path / "second")
    assert str(tmp_path) not in (tmp_path / "second" / "config.json").read_text(encoding="utf-8")


def test_a_bank_goes_on_where_it_stopped_and_keeps_pairs(corpus: Path, tmp_path: Path) -> None:
    """Nothing is computed twice, and each batch holds as many of each class."""
    pictures = BalancedPictures(read_corpus(corpus), CodecChain(), size=32, batch=4, seed=2)
    computed: list[int] = []

    def halved(crops: torch.Tensor) -> torch.Tensor:
        computed.append(len(crops))
        return crops.permute(0, 3, 1, 2).float() / 2

    def stopped(crops: torch.Tensor) -> torch.Tensor:
        if len(computed) == 3:
            raise InterruptedError
        return halved(crops)

    with pytest.raises(InterruptedError):
        FeatureBank(tmp_path, 16).fill(pictures, 4, stopped, "half")
    bank = FeatureBank(tmp_path, 16)
    bank.fill(pictures, 4, halved, "half")
    assert computed == [4] * 4
    kept = next(bank.batches("half", 8, first=0, seed=0))
    assert kept.labels.tolist() == [1, 0] * 4
    assert kept.features is not None
    np.testing.assert_array_equal(kept.features * 2, kept.pictures.transpose(0, 3, 1, 2))


def test_a_bank_of_other_pictures_or_of_another_recipe_is_refused(corpus: Path, tmp_path: Path) -> None:
    """A seed, a history or a corpus that changed would leave crops that the training never asked for."""
    samples = read_corpus(corpus)

    def fill(samples: list[Sample], chain: CodecChain, seed: int) -> None:
        pictures = BalancedPictures(samples, chain, size=32, batch=4, seed=seed)
        FeatureBank(tmp_path, 8).fill(pictures, 4, None, "")

    fill(samples, CodecChain(), 2)
    fill(samples, CodecChain(), 2)
    for others in (
        (samples[1:], CodecChain(), 2),
        (samples, CodecChain(blur=0), 2),
        (samples, CodecChain(), 3),
    ):
        with pytest.raises(ValueError, match="another recipe or seed"):
            fill(*others)


def test_features_of_another_unet_are_not_taken_from_the_bank(corpus: Path, tmp_path: Path) -> None:
    """Two U-Nets share the crops of one bank, and each has a file of features of its own."""
    training, validation = grouped_split(read_corpus(corpus), every=4)
    recipe = ClassifierTraining(
        network=ResNetConfig(depth=18, width=8), size=32, batch=4, bank=8, max_steps=1, seed=1
    )
    for seed in (1, 2):
        torch.manual_seed(seed)
        unet = build_unet((16, 16), 32)
        train_classifier(unet, training, validation, tmp_path / str(seed), recipe, bank=tmp_path / "bank")
    assert len(list((tmp_path / "bank").glob("dnf-0-*.npy"))) == 2
    assert len(list((tmp_path / "bank").glob("pictures*.npy"))) == 1


def test_the_paper_squashes_the_whole_picture() -> None:
    """Its recipe has no codec chain, and the same picture under both labels is the same square."""
    recipe = paper_recipe(ClassifierTraining(minutes=3, seed=9))
    assert (recipe.network.depth, recipe.size, recipe.batch, recipe.learning_rate) == (50, 256, 64, 1e-4)
    assert recipe.dnf.quantise
    assert (recipe.minutes, recipe.seed) == (3, 9)
    wide = np.zeros((40, 160, 3), dtype=np.uint8)
    wide[:, 80:] = 255
    square = SquashAndFlip()(wide, 64, np.random.default_rng(0))
    assert square.shape == (64, 64, 3)
    assert 0.45 < (square > 127).mean() < 0.55


def test_training_goes_on_where_it_stopped(corpus: Path, tmp_path: Path) -> None:
    """A second run with more minutes keeps the first run's steps and adds to them."""
    recipe = UnetTraining(channels=(16, 16), size=32, batch=2, minutes=0.02)
    train_unet(read_corpus(corpus), tmp_path, recipe)
    before = json.loads((tmp_path / "unet-curves.json").read_text())["loss"]
    longer = UnetTraining(channels=(16, 16), size=32, batch=2, minutes=10, max_steps=len(before) + 3)
    train_unet(read_corpus(corpus), tmp_path, longer)
    after = json.loads((tmp_path / "unet-curves.json").read_text())["loss"]
    assert len(after) > len(before) > 0
    assert after[: len(before)] == before


def test_the_u_net_learns_to_estimate_noise(corpus: Path, tmp_path: Path) -> None:
    """After 60 steps its loss is well below that of saying nothing, which is 1."""
    recipe = UnetTraining((16, 16), size=32, batch=4, minutes=10, max_steps=60, learning_rate=3e-3)
    train_unet(read_corpus(corpus), tmp_path, recipe)
    losses = json.loads((tmp_path / "unet-curves.json").read_text())["loss"]
    assert np.mean(losses[-10:]) < 0.9


def test_pictures_become_a_bundle_and_the_bundle_is_measured(corpus: Path, tmp_path: Path) -> None:
    """`train all`, then `evaluate`: stripes are told from noise."""
    out = str(tmp_path / "bundle")
    options = ["--out", out, "--max-steps", "20", "--size", "32", "--batch", "8", "--channels", "16,16"]
    trained = CliRunner().invoke(main, ["train", "all", str(corpus), *options, "--bank", "32"])
    assert trained.exit_code == 0, trained.output
    manifest = resolve(out).manifest
    assert manifest.preprocessing.mode == "crop"
    assert manifest.provenance["classifier_steps"] == 20
    assert (tmp_path / "bundle-work" / "unet" / "unet-curves.json").exists()
    assert (tmp_path / "bundle-work" / "classifier" / "classifier-curves.png").exists()
    report = str(tmp_path / "report")
    measured = CliRunner().invoke(
        main, ["evaluate", out, str(corpus), "--out", report, "--record", "own", "--robustness", "none"]
    )
    assert measured.exit_code == 0, measured.output
    assert "| all " in (tmp_path / "report" / "figures.md").read_text()
    assert "auroc" in str(resolve(out).manifest.figures["own"])


def test_two_trainings_with_one_seed_give_one_network(corpus: Path, tmp_path: Path) -> None:
    """With steps instead of minutes a training is reproducible."""
    training, validation = grouped_split(read_corpus(corpus), every=4)

    def train(folder: str) -> torch.Tensor:
        recipe = ClassifierTraining(
            feature="rgb",
            network=ResNetConfig(depth=18, width=8),
            size=32,
            batch=4,
            max_steps=6,
            validate_steps=3,
        )
        return train_classifier(None, training, validation, tmp_path / folder, recipe).network.conv1.weight

    torch.testing.assert_close(train("one"), train("two"), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [(["--batch", "5"], "--batch is even"), (["--bank", "8"], "--bank holds at least a batch, 32 crops")],
)
def test_a_batch_that_cannot_be_balanced_is_a_usage_error(
    corpus: Path, tmp_path: Path, options: list[str], complaint: str
) -> None:
    """It is said before anything is trained."""
    command = ["train", "all", str(corpus), "--out", str(tmp_path / "b"), "--max-steps", "1", *options]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2
    assert complaint in result.output
    assert not (tmp_path / "b-work").exists()


def test_a_corpus_too_small_to_calibrate_on_is_a_usage_error(tmp_path: Path) -> None:
    """Two pictures leave nothing to validate on; it is said before the classifier is trained."""
    for place in ("real", "generated"):
        (tmp_path / place).mkdir()
        Image.new("RGB", (64, 64)).save(tmp_path / place / "a.png")
    work = tmp_path / "work"
    command = ["train", "classifier", str(tmp_path), "--feature", "rgb", "--work", str(work)]
    result = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "b"), "--max-steps", "1"])
    assert result.exit_code == 2
    assert "no pictures of both classes to validate on" in result.output
    assert not work.exists()


def test_a_family_can_be_held_out_whole(corpus: Path, tmp_path: Path) -> None:
    """It is calibrated on and never trained on; a family that is not there is a usage error."""
    out = str(tmp_path / "bundle")
    tiny = ["--max-steps", "2", "--size", "32", "--batch", "4", "--work", str(tmp_path / "work")]
    command = ["train", "classifier", str(corpus), "--feature", "npr", "--out", out, *tiny]
    trained = CliRunner().invoke(main, [*command, "--hold-out", "g1", "--views", "4"])
    assert trained.exit_code == 0, trained.output
    manifest = resolve(out).manifest
    assert manifest.preprocessing.views == 4
    assert (manifest.feature, manifest.unet) == ("npr", None)
    assert manifest.provenance["held_out_families"] == ["g1"]
    assert manifest.provenance["training_pictures"] == 40 - 10 - 2 - 1
    wrong = CliRunner().invoke(main, [*command, "--hold-out", "nobody"])
    assert wrong.exit_code == 2
    assert "no family nobody" in wrong.output


def test_the_feature_and_the_u_net_must_fit(corpus: Path, tmp_path: Path) -> None:
    """The noise feature cannot be trained without a U-Net, and the error says so."""
    command = ["train", "classifier", str(corpus), "--work", str(tmp_path), "--out", str(tmp_path / "b")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2
    assert "needs --unet" in result.output


def test_the_classifier_goes_on_where_it_stopped(corpus: Path, tmp_path: Path) -> None:
    """A second run keeps the first one's losses and figures; one that had reached its end adds no step."""
    unet = build_unet((16, 16), 32)
    training, validation = grouped_split(read_corpus(corpus), every=4)

    def train(steps: int) -> dict[str, list[object]]:
        network = ResNetConfig(depth=18, width=8)
        recipe = ClassifierTraining(network=network, size=32, batch=4, max_steps=steps)
        train_classifier(unet, training, validation, tmp_path, recipe)
        record: dict[str, list[object]] = json.loads((tmp_path / "classifier-curves.json").read_text())
        return record

    first, again, second = train(4), train(4), train(7)
    assert again == first
    assert (len(first["loss"]), len(second["loss"])) == (4, 7)
    assert second["loss"][: len(first["loss"])] == first["loss"]
    assert second["validation"][: len(first["validation"])] == first["validation"]


@pytest.mark.parametrize("fused", [False, True])
def test_training_goes_on_from_a_bundles_network(corpus: Path, tmp_path: Path, *, fused: bool) -> None:
    """One step at a rate of nearly nothing leaves the weights of the bundle, or of one of its branches."""
    train = ["train", "classifier", str(corpus), "--feature", "npr", "--size", "32", "--batch", "4"]
    first = [*train, "--work", str(tmp_path / "a"), "--out", str(tmp_path / "npr"), "--max-steps", "3"]
    assert CliRunner().invoke(main, first).exit_code == 0
    start = tmp_path / "npr"
    if fused:
        whole = ["train", "all", str(corpus), "--size", "32", "--batch", "4", "--max-steps", "2"]
        result = CliRunner().invoke(main, [*whole, "--channels", "16,32", "--out", str(tmp_path / "dnf")])
        assert result.exit_code == 0, result.output
        fuse = ["train", "fuse", str(corpus), str(tmp_path / "dnf"), str(start), "--hold-out", "g1"]
        assert CliRunner().invoke(main, [*fuse, "--out", str(tmp_path / "fused")]).exit_code == 0
        start = tmp_path / "fused"
    second = [*train, "--work", str(tmp_path / "b"), "--out", str(tmp_path / "more"), "--max-steps", "1"]
    result = CliRunner().invoke(main, [*second, "--start-from", str(start)])
    assert result.exit_code == 0, result.output
    before, after = (load_file(tmp_path / name / "classifier.safetensors") for name in ("npr", "more"))
    moved = float((before["conv1.weight"] - after["conv1.weight"]).float().abs().max())
    assert 0 < moved < 0.05  # two random starts differ by more than 0.3
    provenance = resolve(str(tmp_path / "more")).manifest.provenance
    assert provenance["started_from"] == f"dnf 1, digest {resolve(str(start)).digest}"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--feature", "rgb"], "no network on rgb alone, but on npr"),
        (["--feature", "npr", "--preset", "paper"], "another depth, width or stem"),
    ],
)
def test_a_start_that_does_not_fit_is_a_usage_error(
    corpus: Path, tmp_path: Path, options: list[str], reason: str
) -> None:
    """It is said before anything is trained, with what the bundle has."""
    write = ["train", "classifier", str(corpus), "--size", "32", "--batch", "4", "--max-steps", "1"]
    first = [*write, "--feature", "npr", "--work", str(tmp_path / "a"), "--out", str(tmp_path / "npr")]
    assert CliRunner().invoke(main, first).exit_code == 0
    again = [*write, *options, "--work", str(tmp_path / "b"), "--out", str(tmp_path / "c")]
    result = CliRunner().invoke(main, [*again, "--start-from", str(tmp_path / "npr")])
    assert result.exit_code == 2
    assert reason in result.output


def test_the_u_net_takes_any_size_that_its_levels_divide() -> None:
    """It is fully convolutional."""
    unet = build_unet((16, 32), 32)
    x = torch.zeros(1, 3, 64, 96)
    assert unet(x, torch.zeros(1, dtype=torch.long)).shape == x.shape
