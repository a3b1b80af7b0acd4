"""The locks of requirements."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = ("requirements.lock", "torch.lock", "torch-cpu.lock")
PINNED = re.compile(r"[a-z0-9][a-z0-9._-]*(\[[a-z,]+\])?==[^\s;*]+( ;.*)?\s*")


def entries(lock: str) -> dict[str, list[str]]:
    """Return each entry's requirement with its hashes."""
    blocks = re.split(r"\n(?=\S)", (ROOT / lock).read_text().replace("\\\n", " ").strip())
    found = {}
    for block in blocks:
        if not block.startswith("#"):
            requirement, *hashes = re.split(r"\s+--hash=sha256:", block)
            found[requirement.strip()] = hashes
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_every_requirement_is_pinned_to_a_version_and_to_hashes(lock: str) -> None:
    """Each entry has one version and at least one SHA-256, and no other source."""
    assert len(entries(lock)) > (50 if lock == "requirements.lock" else 5)
    for requirement, hashes in entries(lock).items():
        assert PINNED.fullmatch(requirement), requirement
        assert hashes, requirement
        for digest in hashes:
            assert re.match(r"[0-9a-f]{64}(\s|$)", digest), requirement


def test_everything_that_torch_requires_is_locked_and_agrees_with_the_other_locks() -> None:
    """Both locks hold PyTorch with all that it requires; what the project requires too has one version."""
    main = entries("requirements.lock")
    versions = {name: version for name, _, version in (each.partition("==") for each in main)}
    for lock in ("torch.lock", "torch-cpu.lock"):
        names = {each.partition("==")[0] for each in entries(lock)}
        assert {"torch", "filelock", "fsspec", "jinja2", "networkx", "setuptools", "sympy", "mpmath"} <= names
        for requirement in entries(lock):
            name, _, version = requirement.partition("==")
            assert versions.get(name, version) == version, requirement
    assert any(name.startswith("nvidia-") for name in entries("torch.lock"))
    assert not any(name.startswith("nvidia-") for name in entries("torch-cpu.lock"))


def test_pip_installs_nothing_without_a_hash() -> None:
    """Of the Makefile's installations, only the project itself, without requirements, has none."""
    recipes = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    installations = re.findall(r"\$\(PIP\)[^;\n]*", recipes)
    assert len(installations) == 5
    for command in installations:
        assert re.search("--require-hashes|--dry-run|--no-deps --no-build-isolation --editable", command), (
            command
        )
    assert "pip install" not in recipes.replace("PIP := $(BIN)/pip install", "")


def test_the_bill_of_materials_names_every_library_of_the_image() -> None:
    """CycloneDX with a package URL, a version and hashes each; every reference is to a component."""
    command = [sys.executable, ROOT / "deploy" / "image_contents.py", "sbom"]
    bill = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    components = {component["bom-ref"]: component for component in bill["components"]}
    assert len(components) == len(bill["components"])
    names = {component["name"] for component in components.values()}
    assert {"torch", "sympy", "celery", "redis", "pillow", "diffusers"} <= names
    assert not {"pytest", "ruff", "mypy"} & names
    for component in components.values():
        assert component["purl"] == f"pkg:pypi/{component['name']}@{component['version']}"
        (distribution,) = component["externalReferences"]
        assert distribution["hashes"]
    root = bill["metadata"]["component"]["bom-ref"]
    uses = {entry["ref"]: set(entry["dependsOn"]) for entry in bill["dependencies"]}
    assert uses.keys() == {root, *components}
    reached, waiting = {root}, [root]
    while waiting:
        new = uses[waiting.pop()] - reached
        reached |= new
        waiting += new
    assert reached == {root, *components}
