"""The wheel works in an environment that holds nothing but what it declares."""

import importlib.metadata
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[3]
NAME = "dnf-moderation"


@dataclass(frozen=True)
class CleanInstallation:
    """A virtual environment with the wheel, and the wheel itself."""

    environment: Path
    wheel: Path

    def run(self, program: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run one of the wheel's commands outside of the repository; its path has nothing of the tests'."""
        ours = ("DNF_", "PYTHON", "COVERAGE")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        return subprocess.run(
            [self.environment / "bin" / program, *arguments],
            check=False,
            capture_output=True,
            text=True,
            cwd=cwd,
            env={**inherited, "OMP_NUM_THREADS": "1"},
        )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> CleanInstallation:
    """Build the wheel and install it, with links to the declared dependencies in place of a download."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [
        "wheel",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "--wheel-dir",
        str(folder),
        str(ROOT),
    ]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = folder.glob("*.whl")
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True)
    (site_packages,) = environment.glob("lib/python*/site-packages")
    _link_dependencies(environment, site_packages, extra="embedded")
    return CleanInstallation(environment, wheel)


def _link_dependencies(environment: Path, site_packages: Path, *, extra: str) -> None:
    """Link what the wheel requires with `extra`, and what that requires in turn."""
    (project,) = importlib.metadata.distributions(name=NAME, path=[str(site_packages)])
    waiting = [(project, frozenset({extra}))]
    seen = {(NAME, frozenset({extra}))}
    while waiting:
        distribution, extras = waiting.pop()
        for requirement in map(Requirement, distribution.requires or []):
            marker = requirement.marker
            if marker and not any(marker.evaluate({"extra": name}) for name in ("", *extras)):
                continue
            key = (requirement.name, frozenset(requirement.extras))
            if key not in seen:
                seen.add(key)
                required = importlib.metadata.distribution(requirement.name)
                waiting.append((required, key[1]))
                _link(required, environment, site_packages)


def _link(distribution: importlib.metadata.Distribution, environment: Path, site_packages: Path) -> None:
    """Link a distribution's packages and programs into the environment."""
    for file in distribution.files or []:
        if file.parts[-2:-1] == ("bin",) and file.parts[0] == "..":
            link, name = environment / "bin" / file.name, str(file)
        else:
            link, name = site_packages / file.parts[0], file.parts[0]
        if name not in {"..", "__pycache__"} and not link.exists():
            link.symlink_to(Path(str(distribution.locate_file(name))).resolve())


def test_the_wheel_holds_both_packages_with_their_data_and_nothing_else(
    installed: CleanInstallation,
) -> None:
    """The default bundle, the samples and the type markers are in it; tests and deployment are not."""
    names = zipfile.ZipFile(installed.wheel).namelist()
    assert {name.partition("/")[0].rpartition(".")[2] for name in names} == {
        "detector",
        "worker",
        "dist-info",
    }
    assert {
        "detector/py.typed",
        "worker/py.typed",
        "detector/bundles/default/bundle.json",
        "detector/bundles/default/unet/diffusion_pytorch_model.safetensors",
        "worker/demo/samples/real-cat.jpg",
    } <= set(names)
    assert [name for name in names if "__pycache__" in name or name.endswith(".so")] == []


def test_the_installed_detector_checks_a_picture_with_the_default_bundle(
    installed: CleanInstallation, tmp_path: Path
) -> None:
    """`dnf-detector check` of a sample from the wheel exits 0 with a verdict."""
    (sample,) = installed.environment.glob("lib/python*/site-packages/worker/demo/samples/real-cat.jpg")
    checked = installed.run("dnf-detector", "check", str(sample), "--json", cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    assert json.loads(checked.stdout.splitlines()[0])["verdict"] in {"real", "review", "generated"}


def test_the_installed_worker_runs_the_demonstration(
    installed: CleanInstallation, tiny_bundle: Path, tmp_path: Path
) -> None:
    """With the extra `embedded`, `dnf-worker demo` starts its services and writes the contact sheet."""
    demo = installed.run("dnf-worker", "demo", "--bundle", str(tiny_bundle), "--out", "demo", cwd=tmp_path)
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert (tmp_path / "demo" / "verdicts.html").stat().st_size > 0
