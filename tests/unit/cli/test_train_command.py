"""dnf-detector train: bundles, ensembles, fine-tuning and usage errors."""

import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from diffusers import UNet2DModel
from PIL import Image
from safetensors.torch import load_file

from detector.bundle.files import resolve
from detector.cli import main
from detector.detector import Detector
from detector.networks.unet import DdimConfig, diffusers_config
from tests.striped_corpus import write_striped_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the striped corpus."""
    return write_striped_corpus(tmp_path_factory.mktemp("corpus"))


def test_a_bundle_is_trained_and_evaluated(corpus: Path, tmp_path: Path) -> None:
    """`train all`, then `evaluate`, on stripes and noise."""
    out = str(tmp_path / "bundle")
    options = ["--out", out, "--max-steps", "6", "--size", "32", "--batch", "8", "--channels", "16,16"]
    trained = CliRunner().invoke(main, ["train", "all", str(corpus), *options, "--bank", "2"])
    assert trained.exit_code == 0, trained.output
    manifest = resolve(out).manifest
    assert manifest.preprocessing.mode == "crop"
    assert manifest.provenance["classifier_steps"] == 6
    assert manifest.provenance["training_origins"] == {
        "generators": ["g0", "g1"],
        "sources": ["g0", "g1", "real"],
    }
    assert (tmp_path / "bundle-work" / "unet" / "unet-curves.json").exists()
    assert (tmp_path / "bundle-work" / "classifier" / "classifier-curves.png").exists()
    report = str(tmp_path / "report")
    measured = CliRunner().invoke(
        main, ["evaluate", out, str(corpus), "--out", report, "--record", "own", "--robustness", "none"]
    )
    assert measured.exit_code == 0, measured.output
    assert "| all " in (tmp_path / "report" / "figures.md").read_text()
    assert "auroc" in str(resolve(out).manifest.figures["own"])


def test_a_linear_classifier_is_fitted_to_co_occurrences(corpus: Path, tmp_path: Path) -> None:
    """It takes the picture, beside the noise feature if at all."""
    out = tmp_path / "bundle"
    options = [
        "--classifier",
        "cooccurrences",
        "--size",
        "32",
        "--work",
        str(tmp_path / "work"),
        "--out",
        str(out),
    ]
    wrong = CliRunner().invoke(main, ["train", "classifier", str(corpus), *options, "--feature", "npr"])
    assert wrong.exit_code == 2
    assert "a --feature that ends with rgb" in wrong.output
    trained = CliRunner().invoke(main, ["train", "classifier", str(corpus), *options, "--feature", "rgb"])
    assert trained.exit_code == 0, trained.output
    manifest = resolve(str(out)).manifest
    assert manifest.classifier.model_dump() == {"kind": "cooccurrences", "in_channels": 3}
    assert manifest.provenance["squares_of_each_picture"] == 3
    assert "classifier_steps" not in manifest.provenance


def test_a_batch_that_cannot_be_balanced_is_a_usage_error(corpus: Path, tmp_path: Path) -> None:
    """It is reported before anything is trained."""
    command = ["train", "all", str(corpus), "--out", str(tmp_path / "b"), "--max-steps", "1", "--batch", "5"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2
    assert "--batch must be even" in result.output
    assert not (tmp_path / "b-work").exists()


def test_a_corpus_too_small_to_calibrate_on_is_a_usage_error(tmp_path: Path) -> None:
    """Two pictures leave none to validate on, which is reported before the classifier is trained."""
    for place in ("real", "generated"):
        (tmp_path / place).mkdir()
        Image.new("RGB", (64, 64)).save(tmp_path / place / "a.png")
    work = tmp_path / "work"
    command = ["train", "classifier", str(tmp_path), "--feature", "rgb", "--work", str(work)]
    result = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "b"), "--max-steps", "1"])
    assert result.exit_code == 2
    assert "no pictures of both classes to validate on" in result.output
    assert not work.exists()


def test_a_family_can_be_held_out_entirely(corpus: Path, tmp_path: Path) -> None:
    """It is used for calibration and not for training; an unknown family is a usage error."""
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


def test_a_noise_feature_needs_a_unet(corpus: Path, tmp_path: Path) -> None:
    """Without one the usage error names the option."""
    command = ["train", "classifier", str(corpus), "--work", str(tmp_path), "--out", str(tmp_path / "b")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2
    assert "needs --unet" in result.output


@pytest.mark.parametrize("fused", [False, True])
def test_a_bundles_network_is_fine_tuned(corpus: Path, tmp_path: Path, *, fused: bool) -> None:
    """One step at the low rate of the warm-up nearly keeps the weights of the bundle or of its branch."""
    train = ["train", "classifier", str(corpus), "--feature", "npr", "--size", "32", "--batch", "4"]
    first = [*train, "--work", str(tmp_path / "a"), "--out", str(tmp_path / "npr"), "--max-steps", "3"]
    assert CliRunner().invoke(main, first).exit_code == 0
    start = tmp_path / "npr"
    if fused:
        whole = ["train", "all", str(corpus), "--size", "32", "--batch", "4", "--max-steps", "2"]
        result = CliRunner().invoke(main, [*whole, "--channels", "16,32", "--out", str(tmp_path / "dnf")])
        assert result.exit_code == 0, result.output
        fuse = ["train", "fuse", str(tmp_path / "dnf"), str(start)]
        assert CliRunner().invoke(main, [*fuse, "--out", str(tmp_path / "fused")]).exit_code == 0
        start = tmp_path / "fused"
    second = [*train, "--work", str(tmp_path / "b"), "--out", str(tmp_path / "more"), "--max-steps", "1"]
    result = CliRunner().invoke(main, [*second, "--fine-tune", str(start)])
    assert result.exit_code == 0, result.output
    before, after = (load_file(tmp_path / name / "classifier.safetensors") for name in ("npr", "more"))
    moved = float((before["conv1.weight"] - after["conv1.weight"]).float().abs().max())
    assert 0 < moved < 0.05  # two random initialisations differ by more than 0.3
    provenance = resolve(str(tmp_path / "more")).manifest.provenance
    assert provenance["fine_tuned_from"] == f"dnf 1, digest {resolve(str(start)).digest}"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--feature", "rgb"], "no network on rgb alone, but on npr"),
        (["--feature", "npr", "--preset", "paper"], "another depth, width or stem"),
    ],
)
def test_a_bundle_that_cannot_be_fine_tuned_is_a_usage_error(
    corpus: Path, tmp_path: Path, options: list[str], reason: str
) -> None:
    """It is reported before anything is trained, with what the bundle has."""
    write = ["train", "classifier", str(corpus), "--size", "32", "--batch", "4", "--max-steps", "1"]
    first = [*write, "--feature", "npr", "--work", str(tmp_path / "a"), "--out", str(tmp_path / "npr")]
    assert CliRunner().invoke(main, first).exit_code == 0
    again = [*write, *options, "--work", str(tmp_path / "b"), "--out", str(tmp_path / "c")]
    result = CliRunner().invoke(main, [*again, "--fine-tune", str(tmp_path / "npr")])
    assert result.exit_code == 2
    assert reason in result.output


@pytest.mark.parametrize("command", ["train", "train unet", "train classifier", "train all", "train fuse"])
def test_the_help_has_an_example_and_sections_of_options(command: str) -> None:
    """The example names the command; sections come before the general options."""
    text = CliRunner().invoke(main, [*command.split(), "--help"]).output
    assert f"dnf-detector {command} " in text[text.index("Example") :]
    if command != "train":
        # An ensemble needs no pictures.
        titles = ["Output:", "Options:"] if command == "train fuse" else ["Corpus:", "Output:", "Options:"]
        assert [text.index(title) for title in titles] == sorted(text.index(title) for title in titles)


def test_the_commands_of_make_gpu_train_are_valid(tmp_path: Path) -> None:
    """Each is complete but for the corpus, which is the last thing that a command complains about."""
    words = ["make", "-s", "gpu-train", "READY=", "DEVICE=cpu", "DETECTOR=echo", "SPLITS=a,b"]
    root = Path(__file__).parents[3]
    command = [*words, f"CORPUS={tmp_path / 'none'}"]
    printed = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=True).stdout
    commands = [shlex.split(line) for line in printed.splitlines()]
    assert [arguments[:2] for arguments in commands] == [["train", "unet"], ["train", "classifier"]]
    for arguments in commands:
        assert arguments[3:7] == ["--split", "a", "--split", "b"]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2
        assert "does not exist" in result.output
    whole = next(arguments for arguments in commands if arguments[1] == "unet")
    (tmp_path / "none").mkdir()
    assert "Error: there is no manifest.csv" in CliRunner().invoke(main, whole).output


def test_a_classifier_is_trained_on_a_folder_of_the_published_architecture(
    corpus: Path, tmp_path: Path
) -> None:
    """Six levels with attention on the fifth, as LSUN-Bedroom's, but narrow: trained, banked and served."""
    model = {"ch": 32, "ch_mult": [1, 1, 2, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [16]}
    config = DdimConfig.model_validate({"data": {"image_size": 256}, "model": model})
    unet = tmp_path / "bedroom"
    UNet2DModel(**diffusers_config(config)).save_pretrained(str(unet), safe_serialization=True)
    out, bank = tmp_path / "mine", tmp_path / "bank"
    command = ["train", "classifier", str(corpus), "--unet", str(unet), "--work", str(tmp_path / "work")]
    quick = [
        "--size",
        "32",
        "--batch",
        "4",
        "--width",
        "8",
        "--views",
        "1",
        "--max-steps",
        "2",
        "--bank",
        "1",
    ]
    trained = CliRunner().invoke(main, [*command, *quick, "--bank-folder", str(bank), "--out", str(out)])
    assert trained.exit_code == 0, trained.output
    assert len(list(bank.glob("dnf-0-*.npy"))) == 1
    picture = next((corpus / "real").glob("*.png"))
    detector = Detector.load(out, device="cpu", dtype="float32")
    (finding,) = detector.examine([detector.prepare(np.asarray(Image.open(picture)))])
    assert finding.dnf.shape == (3, 32, 32)
    assert 0 < finding.probability < 1
