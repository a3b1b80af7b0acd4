"""dnf-detector: output, exit statuses and errors of its commands."""

import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from detector.cli import main
from detector.cli import main as detector_cli
from worker.cli import main as worker_cli


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make two pictures, one of them in a subfolder, and a text file with a picture's suffix."""
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
def test_wrong_usage_is_explained_and_exits_two(arguments: list[str]) -> None:
    """The output has an error line and no traceback."""
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Error" in result.output
    assert "Traceback" not in result.output


def test_the_feature_is_written_as_an_array_and_as_a_picture(
    folder: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    """The .npy file holds float32 (3, S, S), the .png file S x S pixels."""
    for name in ("f.npy", "f.png"):
        result = run("dnf", "--bundle", tiny_bundle, folder / "a.png", "--out", tmp_path / name)
        assert result.exit_code == 0, result.output
    feature = np.load(tmp_path / "f.npy")
    assert (feature.shape, feature.dtype) == ((3, 64, 64), np.float32)
    assert Image.open(tmp_path / "f.png").size == (64, 64)


def test_a_file_that_cannot_be_written_is_one_line(folder: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """Whatever the command, and with its control characters escaped; exit status 1."""
    out = tmp_path / "miss\x1bing" / "f.npy"
    result = run("dnf", "--bundle", tiny_bundle, folder / "a.png", "--out", out)
    assert result.exit_code == 1
    assert result.output == f"Error: {tmp_path}/miss\\x1bing/f.npy: No such file or directory\n"


def test_inspect_shows_the_manifest_and_the_verified_digests(tiny_bundle: Path) -> None:
    """As text, with whole digests in a pipe, and as JSON."""
    shown = json.loads(run("inspect", "--json", tiny_bundle).stdout)
    assert shown["name"] == "tiny"
    assert len(shown["digest"]) == 64
    text = run("inspect", tiny_bundle).stdout
    assert shown["digest"] in text
    for name, digest in shown["files"].items():
        assert name in text
        assert digest in text


def test_a_pickle_that_runs_code_is_not_converted(tmp_path: Path) -> None:
    """Checkpoints are read with `weights_only=True`; one that would run code is rejected."""
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
    """PyTorch is imported only to load a model."""
    code = (
        "import sys; from detector.cli import main\n"
        f"main(['inspect', {str(tiny_bundle)!r}], standalone_mode=False)\n"
        "sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


def test_inspect_shows_a_bundle_without_a_u_net(tiny_bundle: Path, tmp_path: Path) -> None:
    """A baseline has no U-Net, and its manifest says so."""
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "baseline"))
    manifest = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(manifest | {"feature": "rgb", "unet": None}))
    result = run("inspect", folder)
    assert result.exit_code == 0, result.output
    assert re.search(r"^unet +none$", result.stdout, re.MULTILINE)


def test_a_missing_bundle_is_one_line(folder: Path) -> None:
    """Standard error names the reason and the bundle; standard output stays empty for a pipe."""
    result = run("check", "--bundle", "no-such-bundle", folder)
    assert result.stderr == "Error: not_found: There is no bundle at no-such-bundle.\n"
    assert result.stdout == ""


@pytest.mark.parametrize("arguments", [["check"], ["inspect"]])
def test_a_pipe_gets_no_colours(folder: Path, tiny_bundle: Path, arguments: list[str]) -> None:
    """Escape sequences are written only to a terminal."""
    more = ["--bundle", tiny_bundle, folder / "a.png"] if arguments == ["check"] else [tiny_bundle]
    assert "\x1b" not in run(*arguments, *more).output


@pytest.mark.parametrize("command", ["check", "dnf", "inspect", "convert"])
def test_the_help_of_each_command_has_an_example(command: str) -> None:
    """The example begins with the program's name."""
    text = run(command, "--help").stdout
    assert f"dnf-detector {command} " in text[text.index("Example") :]


def test_the_version_is_printed() -> None:
    """`--version` prints the version of the installed package."""
    assert run("--version").stdout.split()[-1] == version("dnf-moderation")


@pytest.mark.parametrize("program", [detector_cli, worker_cli], ids=["dnf-detector", "dnf-worker"])
def test_the_listed_commands_are_those_that_exist(program: click.Group) -> None:
    """Each is loaded when it is called, and the list says what its own help begins with."""
    context = click.Context(program)
    listed = CliRunner().invoke(program, ["--help"], terminal_width=300).stdout
    for name in program.list_commands(context):
        command = program.get_command(context, name)
        assert command is not None
        assert command.name == name
        summary = re.search(rf"^  {name} +(.+)$", listed, re.MULTILINE)
        assert summary, name
        assert (command.help or "").startswith(summary[1])
