"""dnf-detector, from a person's side."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from detector.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make two pictures, one of them in a folder below, and a text file with a picture's name."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "below").mkdir()
    for seed, path in enumerate((root / "a.png", root / "below" / "b.jpg")):
        pixels = np.random.default_rng(seed).integers(0, 256, (80, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    (root / "text.jpg").write_text("not a picture")
    return root


def run(*arguments: object) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_a_good_picture_gives_a_verdict_and_exit_zero(folder: Path, tiny_bundle: Path) -> None:
    """One JSON object with the promised fields."""
    result = run("check", "--bundle", tiny_bundle, "--json", folder / "a.png")
    assert result.exit_code == 0
    record = json.loads(result.stdout)
    assert record["path"] == str(folder / "a.png")
    assert record["verdict"] in {"real", "review", "generated"}
    assert 0 <= record["score"] <= 1
    assert isinstance(record["logit"], float)


def test_a_rejected_file_gives_its_reason_and_exit_one(folder: Path, tiny_bundle: Path) -> None:
    """The folder's good pictures are judged all the same."""
    result = run("check", "--bundle", tiny_bundle, "--json", folder)
    assert result.exit_code == 1
    records = {Path(r["path"]).name: r for r in map(json.loads, result.stdout.splitlines())}
    assert records.keys() == {"a.png", "b.jpg", "text.jpg"}
    assert records["text.jpg"]["rejected"] == "not_an_image"
    assert "verdict" in records["b.jpg"]


def test_the_stability_check_keeps_the_scores_and_the_reasons(folder: Path, tiny_bundle: Path) -> None:
    """It may only turn verdicts into review; a file that is no picture is rejected as ever."""
    plain, checked = (
        {
            r["path"]: r
            for r in map(json.loads, run("check", "--bundle", tiny_bundle, *more).stdout.splitlines())
        }
        for more in (["--json", folder], ["--json", "--stability", folder])
    )
    assert plain.keys() == checked.keys()
    for path, record in plain.items():
        after = checked[path]
        assert after.get("rejected") == record.get("rejected")
        assert after.get("score") == pytest.approx(record.get("score"), abs=1e-4)
        assert after.get("verdict") in {record.get("verdict"), "review"}


def test_the_table_the_csv_and_the_thumbnails_are_written(
    folder: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    """A person's table on standard output; path,score in the file; one PNG a judged picture."""
    result = run(
        "check", "--bundle", tiny_bundle, "--csv", tmp_path / "s.csv", "--thumbnails", tmp_path / "t", folder
    )
    assert "Verdict" in result.stdout
    with (tmp_path / "s.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "score"]
    assert [bool(row["score"]) for row in rows] == [True, True, False]
    assert len(list((tmp_path / "t").glob("*.png"))) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["check"],
        ["check", "no-such-file.jpg"],
        ["check", "--bundle", "no-such-bundle", __file__],
        ["inspect", "no-such-bundle"],
        ["dnf", __file__, "--out", "x.gif"],
        ["convert", "--ddim", __file__],
    ],
)
def test_wrong_usage_is_told_in_a_line_and_exits_two(arguments: list[str]) -> None:
    """Never a traceback."""
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Error" in result.output
    assert "Traceback" not in result.output


def test_the_feature_is_written_as_numbers_and_as_a_picture(
    folder: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    """The .npy is float32 (3, S, S), the .png has S x S pixels."""
    for name in ("f.npy", "f.png"):
        result = run("dnf", "--bundle", tiny_bundle, folder / "a.png", "--out", tmp_path / name)
        assert result.exit_code == 0, result.output
    feature = np.load(tmp_path / "f.npy")
    assert (feature.shape, feature.dtype) == ((3, 64, 64), np.float32)
    assert Image.open(tmp_path / "f.png").size == (64, 64)


def test_inspect_shows_the_manifest_and_the_verified_digests(tiny_bundle: Path) -> None:
    """For people, and as JSON."""
    assert "classifier.safetensors" in run("inspect", tiny_bundle).stdout
    shown = json.loads(run("inspect", "--json", tiny_bundle).stdout)
    assert shown["name"] == "tiny"
    assert len(shown["digest"]) == 64


def test_a_pickle_that_runs_code_is_not_converted(tmp_path: Path) -> None:
    """Checkpoints are read with weights only: a hostile one is refused in a line."""
    hostile = tmp_path / "hostile.ckpt"
    hostile.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "owned").encode() + b"'\ntR.")
    config = tmp_path / "config.json"
    model = {"ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": []}
    config.write_text(json.dumps({"data": {"image_size": 64}, "model": model}))
    options = ["--ddim", hostile, "--unet-config", config, "--classifier", hostile, "--out", tmp_path / "b"]
    result = run("convert", *options)
    assert result.exit_code == 2
    assert not (tmp_path / "owned").exists()


def test_help_and_inspect_never_load_torch(tiny_bundle: Path) -> None:
    """PyTorch is imported only when a model is loaded."""
    code = (
        "import sys; from detector.cli import main\n"
        f"main(['inspect', {str(tiny_bundle)!r}], standalone_mode=False)\n"
        "sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
