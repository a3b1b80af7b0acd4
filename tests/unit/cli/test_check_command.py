"""dnf-detector check: what it prints and writes, and when."""

import csv
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from detector.cli import main
from detector.cli.check import Interruption, picture_name
from tests.conftest import PATIENCE, MakePicture

LIMIT_SECONDS = 120 * PATIENCE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_picture: MakePicture) -> Path:
    """Make two pictures, one of them in a subfolder, and a text file with a picture's suffix."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "below").mkdir()
    (root / "a.png").write_bytes(make_picture(0, size=(70, 80), format="PNG"))
    (root / "below" / "b.jpg").write_bytes(make_picture(1, size=(70, 80)))
    (root / "text.jpg").write_text("not a picture")
    return root


def check(*arguments: object) -> Result:
    """Run the command in this process, which is no terminal."""
    return CliRunner().invoke(main, ["check", *[str(argument) for argument in arguments]])


def command(*arguments: object) -> list[str]:
    """Return the words that run the command in a process of its own."""
    program = "from detector.cli import main; main()"
    return [sys.executable, "-c", program, "check", *[str(argument) for argument in arguments]]


def records(result: Result) -> dict[str, dict[str, Any]]:
    """Return the JSON objects on standard output by the names of their files."""
    return {Path(record["path"]).name: record for record in map(json.loads, result.stdout.splitlines())}


def test_a_good_picture_gives_a_verdict_its_views_and_exit_zero(folder: Path, tiny_bundle: Path) -> None:
    """The output is one JSON object with the documented fields."""
    result = check("--bundle", tiny_bundle, "--json", folder / "a.png")
    assert result.exit_code == 0
    record = json.loads(result.stdout)
    assert record["path"] == str(folder / "a.png")
    assert record["verdict"] in {"real", "review", "generated"}
    assert 0 <= record["score"] <= 1
    assert isinstance(record["logit"], float)
    (view,) = record["views"]
    assert (view.pop("score"), view) == (
        pytest.approx(record["score"], abs=1e-4),
        {"x": 3, "y": 8, "width": 64, "height": 64},
    )
    assert record["strongest_view"] == 0
    assert record["sha256"] == hashlib.sha256((folder / "a.png").read_bytes()).hexdigest()


def test_a_rejected_file_gives_its_reason_and_exit_one(folder: Path, tiny_bundle: Path) -> None:
    """The other pictures in the folder still get verdicts."""
    result = check("--bundle", tiny_bundle, "--json", folder)
    assert result.exit_code == 1
    found = records(result)
    assert found.keys() == {"a.png", "b.jpg", "text.jpg"}
    assert found["text.jpg"]["rejected"] == "not_an_image"
    assert "verdict" in found["b.jpg"]


def test_the_size_of_a_batch_changes_no_result(folder: Path, tiny_bundle: Path) -> None:
    """One picture at once, or all of them with the rejected one between; scores may differ by rounding."""
    alone, together = (
        records(check("--bundle", tiny_bundle, "--json", "--batch-size", size, folder)) for size in (1, 3)
    )
    assert list(alone) == list(together)
    for name, record in alone.items():
        assert record.get("rejected") == together[name].get("rejected")
        assert record.get("score") == pytest.approx(together[name].get("score"), abs=1e-4)


def test_the_stability_check_keeps_the_scores_and_the_reasons(folder: Path, tiny_bundle: Path) -> None:
    """The check may only turn verdicts into review; rejections stay the same."""
    plain, checked = (
        records(check("--bundle", tiny_bundle, *more))
        for more in (["--json", folder], ["--json", "--stability", folder])
    )
    assert plain.keys() == checked.keys()
    for name, record in plain.items():
        after = checked[name]
        assert after.get("rejected") == record.get("rejected")
        assert after.get("score") == pytest.approx(record.get("score"), abs=1e-4)
        assert after.get("verdict") in {record.get("verdict"), "review"}


def test_a_pipe_gets_a_line_for_each_picture_and_files_get_the_rest(
    folder: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    """Fields separated by tabs; views and digest in the CSV file; two pictures of each checked one."""
    folders = {"--thumbnails": tmp_path / "t", "--heatmap": tmp_path / "h"}
    options = [word for pair in folders.items() for word in pair]
    result = check("--bundle", tiny_bundle, "--csv", tmp_path / "s.csv", *options, folder)
    assert result.exit_code == 1
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert [line[3] for line in lines] == [str(folder / n) for n in ("a.png", "below/b.jpg", "text.jpg")]
    assert lines[2] == ["rejected", "-", "-", str(folder / "text.jpg"), "not_an_image"]
    with (tmp_path / "s.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "verdict", "score", "views", "sha256", "rejected"]
    found = records(check("--bundle", tiny_bundle, "--json", folder))
    for line, row in zip(lines, rows, strict=True):
        record = found[Path(row["path"]).name]
        assert row["rejected"] == record.get("rejected", "")
        assert row["verdict"] == record.get("verdict", "")
        if not row["rejected"]:
            assert (line[0], line[1]) == (row["verdict"], f"{float(row['score']):.3f}")
            assert json.loads(row["views"]) == record["views"]
            assert row["sha256"] == record["sha256"]
    digests = {row["sha256"][:16] for row in rows if row["sha256"]}
    for where in folders.values():
        assert {path.stem[-16:] for path in where.iterdir()} == digests
    for path in folders["--heatmap"].iterdir():
        with Image.open(path) as drawn:
            assert drawn.size == (70, 80)


def test_csv_rows_can_go_into_a_pipe(folder: Path, tiny_bundle: Path) -> None:
    """Nothing else is on standard output; JSON beside them is wrong usage."""
    done = subprocess.run(
        command("--bundle", tiny_bundle, "--csv", "-", folder), capture_output=True, text=True, check=False
    )
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [Path(row["path"]).name for row in rows] == ["a.png", "b.jpg", "text.jpg"]
    assert check("--bundle", tiny_bundle, "--csv", "-", "--json", folder).exit_code == 2


def test_a_result_is_there_before_the_next_one_and_an_interrupt_loses_none(
    folder: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    """While the third file has not been read, the first two are in the pipe and in the CSV file."""
    endless, rows = tmp_path / "endless.png", tmp_path / "rows.csv"
    os.mkfifo(endless)
    files = [folder / "a.png", folder / "text.jpg", endless, folder / "below" / "b.jpg"]
    with (
        subprocess.Popen(
            command("--bundle", tiny_bundle, "--json", "--csv", rows, *files),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
        ExitStack() as stack,
    ):
        stack.callback(process.kill)
        assert process.stdout is not None
        assert process.stderr is not None
        printed = [json.loads(process.stdout.readline()) for _ in range(2)]
        assert [record["path"] for record in printed] == [str(file) for file in files[:2]]
        process.send_signal(signal.SIGINT)
        line = process.stderr.readline()
        assert line == "Interrupted: 2 of 4 pictures were checked; their results are complete.\n"
        while process.poll() is None:  # a read in progress ends
            with suppress(OSError):
                os.close(os.open(endless, os.O_WRONLY | os.O_NONBLOCK))
            time.sleep(0.01)
        assert process.communicate(timeout=LIMIT_SECONDS) == ("", "")
        assert process.returncode == 130
    with rows.open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [row["path"] for row in written] == [record["path"] for record in printed]
    assert written[0]["sha256"] == printed[0]["sha256"]


def test_an_interrupt_waits_until_what_was_computed_is_written() -> None:
    """The first one takes effect at the end of the block, a second one at once."""
    before = signal.getsignal(signal.SIGINT)
    written: list[int] = []

    def write(number: int) -> None:
        with interruption.deferred():
            os.kill(os.getpid(), signal.SIGINT)
            written.append(number)

    with Interruption() as interruption:
        for number in (1, 2):
            with pytest.raises(KeyboardInterrupt):
                write(number)
    assert written == [1]
    with Interruption(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture
def terminal(folder: Path, tiny_bundle: Path, tmp_path: Path) -> str:
    """Provide what a terminal of 80 columns receives; one of the names has markup and a control character."""
    picture = Path(shutil.copy(folder / "a.png", tmp_path / "[red]a\x1b.png"))
    control, screen = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen(
        command("--bundle", tiny_bundle, picture, folder), stdout=screen, stderr=screen, env=environment
    )
    os.close(screen)
    received = b""
    while True:
        try:
            part = os.read(control, 4096)
        except OSError:  # the other end was closed
            break
        if not part:
            break
        received += part
    os.close(control)
    assert process.wait(LIMIT_SECONDS) == 1
    return received.decode()


def test_a_terminal_gets_rows_above_a_progress_bar_and_a_summary(
    terminal: str, folder: Path, tmp_path: Path
) -> None:
    """Paths are whole and never obeyed; the bar says how much is done and how long the rest takes."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal)
    assert "\x1b" not in plain
    rows = [line for line in plain.replace("\r", "\n").split("\n") if line.strip()]
    assert any(row.startswith("tiny 0 on cpu, float32") for row in rows)
    assert any(re.fullmatch(r"Verdict +Score +Logit +Size +Picture", row) for row in rows)
    shown = [row for row in rows if re.match(r"(real|review|generated) +0\.\d{3} +[+-]\d\.\d\d +70x80 ", row)]
    assert [row.split("  ")[-1].strip() for row in shown] == [
        str(tmp_path / r"[red]a\x1b.png"),
        str(folder / "a.png"),
        str(folder / "below" / "b.jpg"),
    ]
    assert any(
        re.match(rf"rejected .* {re.escape(str(folder))}/text\.jpg: not_an_image$", row) for row in rows
    )
    assert re.search(r"Checking .*\d/4 pictures .*remaining", plain)
    assert re.match(r"4 pictures: \d real, \d review, \d generated, 1 rejected", rows[-1])


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "..",
        ".hidden.png",
        "a/b.png",
        "-rf.png",
        "x" * 250 + ".png",
        "写" * 80 + ".png",
        "\udcff.png",
        "\u202e\x1b.png",
        " .png",
    ],
)
def test_the_name_of_a_written_picture_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    """Whatever the picture's own name, it can be written, is no option and not hidden."""
    written = picture_name(Path(name), "a" * 64)
    assert Path(written).name == written
    assert not written.startswith((".", "-"))
    assert written.isprintable()
    (tmp_path / written).write_bytes(b"")


def test_written_pictures_have_one_name_for_the_same_picture_only() -> None:
    """Equal names in two folders differ by their content."""
    assert picture_name(Path("a/cat.jpg"), "a" * 64) != picture_name(Path("b/cat.jpg"), "b" * 64)
    assert picture_name(Path("a/cat.jpg"), "a" * 64) == picture_name(Path("b/cat.jpg"), "a" * 64)
    assert picture_name(Path("cat.jpg"), "a" * 64) != picture_name(Path("dog.jpg"), "a" * 64)


@pytest.mark.parametrize("option", ["--csv", "--heatmap", "--thumbnails"])
def test_what_cannot_be_written_is_one_line_before_anything_is_loaded(
    folder: Path, tmp_path: Path, option: str
) -> None:
    """The bundle does not exist either, but is not looked for."""
    (tmp_path / "file").write_text("")
    result = check("--bundle", "no-such-bundle", option, tmp_path / "file" / "below", folder)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"Error: {tmp_path / 'file' / 'below'}: Not a directory\n"


def test_a_full_disk_is_one_line(folder: Path, tiny_bundle: Path) -> None:
    """/dev/full takes no byte."""
    result = check("--bundle", tiny_bundle, "--csv", "/dev/full", folder)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: /dev/full: No space left on device\n"
