"""The demonstration, as a new user runs it."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from worker.demo.samples import bad_uploads, load_samples

DEMO = """
import sys
from pathlib import Path
from worker.demo.demonstration import run_demo
sys.exit(run_demo(keep=sys.argv[1] == "keep", out=Path(sys.argv[2]), bundle=sys.argv[3]))
"""
SECONDS = 200


@contextmanager
def _demo(out: Path, bundle: str | Path, *, keep: bool = False) -> Iterator[subprocess.Popen[str]]:
    """Run the demonstration in a process with its temporary files beside `out`."""
    temporary = out.parent / "temporary"
    temporary.mkdir()
    temporary.chmod(0o711)
    process = subprocess.Popen(
        [sys.executable, "-c", DEMO, "keep" if keep else "end", str(out), str(bundle)],
        env={**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1", "COLUMNS": "160"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _assert_nothing_is_left(out: Path, ports: list[int]) -> None:
    assert list((out.parent / "temporary").glob("dnf-embedded-*")) == []
    for port in ports:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
    left = [
        path.with_name("cmdline").read_bytes()
        for path in Path("/proc").glob("[0-9]*/environ")
        if _mentions(path, out.parent)
    ]
    assert left == []


def _mentions(environ: Path, folder: Path) -> bool:
    try:
        return f"TMPDIR={folder}".encode() in environ.read_bytes()
    except OSError:
        return False


def _ports(text: str) -> list[int]:
    return [int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", text)]


def test_the_demonstration_judges_the_samples_and_leaves_nothing_running(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    """It exits 0 with a verdict on every sample, the reason of every bad upload, the sheet and a log."""
    out = tmp_path / "demo"
    with _demo(out, tiny_bundle) as demo:
        text, _ = demo.communicate(timeout=SECONDS)
        assert demo.returncode == 0, text
    for reason in [
        "not_an_image",
        "truncated",
        "empty",
        "too_many_pixels",
        "format_not_allowed",
        "too_small",
    ]:
        assert reason in text
    assert str(out / "verdicts.html") in text
    page = (out / "verdicts.html").read_text()
    samples = load_samples()
    assert page.count("<article>") == len(samples)
    assert page.count("<code>") == len(bad_uploads())
    events = [
        json.loads(line)["event"] for line in (out / "worker.log").read_text().splitlines() if line[:1] == "{"
    ]
    assert events.count("image_checked") >= len(samples)
    _assert_nothing_is_left(out, _ports(text))


@pytest.mark.parametrize(
    ("moment", "stop"),
    [("early", signal.SIGINT), ("early", signal.SIGTERM), ("while_the_worker_starts", signal.SIGINT)],
)
def test_an_interrupted_demonstration_leaves_nothing_running(
    tiny_bundle: Path, tmp_path: Path, wait_until: Callable[..., None], stop: signal.Signals, moment: str
) -> None:
    """Ctrl-C and SIGTERM end services and worker at any time."""
    out = tmp_path / "demo"
    with _demo(out, tiny_bundle) as demo:
        if moment == "early":
            wait_until(lambda: list((tmp_path / "temporary").glob("dnf-embedded-*")), "the services start")
        else:
            wait_until((out / "worker.log").exists, "the worker starts")
        demo.send_signal(stop)
        text, _ = demo.communicate(timeout=60)
        assert demo.returncode == 130, text
    assert "Nothing is left running" in text
    _assert_nothing_is_left(out, _ports(text))


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Provide a folder that PostgreSQL's user may enter; nobody else enters `tmp_path`."""
    with tempfile.TemporaryDirectory(prefix="dnf-demo-") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


def test_a_kept_demonstration_judges_your_own_pictures_and_serves_the_review_page(
    tiny_bundle: Path, open_folder: Path, make_picture: Callable[..., bytes]
) -> None:
    """The printed link opens the review page; the printed commands return a verdict on a new picture."""
    out = open_folder / "demo"
    picture = open_folder / "own.jpg"
    picture.write_bytes(make_picture(7))
    with _demo(out, tiny_bundle, keep=True) as demo:
        assert demo.stdout is not None
        lines = []
        for line in demo.stdout:
            lines.append(line)
            if "throw-away" in line:
                break
        text = "".join(lines)
        links = re.findall(r"^([a-z+]+): (http://\S+)$", text, re.MULTILINE)
        assert [roles for roles, _ in links] == ["senior+admin", "moderator"], text
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        assert "waiting" in opener.open(links[1][1], timeout=30).read().decode()
        commands = [line for line in lines if line.startswith("export ")]
        picture_taking = ("submit --wait", "TOKEN=$", *(["curl "] if shutil.which("curl") else []))
        commands += [
            line.replace("PICTURE.jpg", str(picture))
            for line in lines
            if any(part in line for part in picture_taking)
        ]
        shell = subprocess.run(
            ["/bin/sh", "-e"],
            input="".join(commands),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert shell.returncode == 0, text + shell.stdout + shell.stderr
        assert '{"check_id":' in shell.stdout or not shutil.which("curl")
        demo.send_signal(signal.SIGINT)
        rest, _ = demo.communicate(timeout=60)
        assert demo.returncode == 0, rest
    _assert_nothing_is_left(out, _ports(text))


def test_a_demonstration_without_a_bundle_says_why_it_failed(tmp_path: Path) -> None:
    """Without a usable bundle it exits 1 and shows the end of the worker's log."""
    out = tmp_path / "demo"
    with _demo(out, tmp_path / "no-bundle-here") as demo:
        text, _ = demo.communicate(timeout=SECONDS)
        assert demo.returncode == 1, text
    assert "The worker ended" in text
    assert "no-bundle-here" in text
    _assert_nothing_is_left(out, _ports(text))
