#!/usr/bin/env python3
"""The locked libraries of the container image: `image_contents.py requirements`, `size` and `sbom`.

`requirements` prints the entries of requirements.lock, with hashes, that the project and its extras for
operators need, without those of development and demonstration. `size` prints their size on disk in the
environment that runs it. `sbom` prints them and PyTorch with its requirements as a bill of materials
(CycloneDX 1.6, JSON).
"""

import argparse
import importlib.metadata
import json
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("gpu", "otel", "review")
# Parts of PyTorch that the Dockerfile removes.
DROPPED = ("torch/include/", "torch/test/", "torch/share/", "torch/bin/")
KEPT = "torch/bin/torch_shm_manager"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Entry(NamedTuple):
    """A pin of the lock: its lines with all hashes, and the names of the packages that require it."""

    text: str
    required_by: frozenset[str]


def entries(lock: str) -> dict[str, list[Entry]]:
    """Return the pins of the lock by name; several where markers choose between versions."""
    found: dict[str, list[Entry]] = {}
    for block in re.split(r"^(?=[a-z0-9])", lock, flags=re.MULTILINE):
        name = _NAME.match(block)
        if name is None:
            continue
        lines = block.splitlines()
        text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
        comment = " ".join(line.lstrip(" #").removeprefix("via") for line in lines if "#" in line)
        found.setdefault(name[0], []).append(Entry(text, frozenset(comment.split())))
    return found


def needed(locked: Mapping[str, list[Entry]], roots: Iterable[str]) -> list[str]:
    """Return the sorted names that `roots` need, themselves included. Raises KeyError for an unknown root."""
    found = set(roots)
    if missing := found - locked.keys():
        raise KeyError(f"not in the lock: {', '.join(sorted(missing))}")
    while True:
        more = {
            name
            for name, pins in locked.items()
            if name not in found and any(pin.required_by & found for pin in pins)
        }
        if not more:
            return sorted(found)
        found |= more


def direct_requirements(extras: Iterable[str] = EXTRAS) -> set[str]:
    """Return the names that the project and its `extras` require directly, without torch."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(x for e in extras for x in project["optional-dependencies"][e])]
    names = {match[0] for line in lines if (match := _NAME.match(line))}
    return names - {"torch"}


def megabytes(distribution: str) -> float:
    """Return the size of a distribution's files in the image, in megabytes (10^6 bytes)."""
    total = 0
    for file in importlib.metadata.files(distribution) or []:
        kept = str(file) == KEPT or not str(file).startswith(DROPPED)
        path = Path(str(file.locate()))
        if kept and path.is_file():
            total += path.stat().st_size
    return total / 1e6


def _sizes(names: Iterable[str]) -> str:
    def installed(name: str) -> bool:
        try:
            return bool(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            return False  # for another platform

    libraries = {name: megabytes(name) for name in names if installed(name)}
    own = {name for name in entries(_read("torch.lock")) if installed(name)} - libraries.keys()
    project = sum(p.stat().st_size for p in (ROOT / "detector").rglob("*") if "__pycache__" not in p.parts)
    project += sum(p.stat().st_size for p in (ROOT / "worker").rglob("*") if "__pycache__" not in p.parts)
    largest = sorted(libraries.items(), key=lambda item: -item[1])[:5]
    rows = [
        (
            f"torch {importlib.metadata.version('torch')} and its own requirements",
            sum(map(megabytes, own)),
        ),
        (f"{len(libraries)} locked libraries", sum(libraries.values())),
        *((f"  {name}", size) for name, size in largest),
        ("detector, worker and the default bundle", project / 1e6),
    ]
    return "".join(f"{size:8.1f} MB  {what}\n" for what, size in rows)


def sbom(locked: Mapping[str, list[Entry]]) -> dict[str, Any]:
    """Return the bill of materials of these pins and of the project."""
    project = tomllib.loads(_read("pyproject.toml"))["project"]
    pins = [(name, pin, *_described(pin)) for name, several in sorted(locked.items()) for pin in several]
    root = f"pkg:pypi/{project['name']}@{project['version']}"
    used: dict[str, set[str]] = {root: set()} | {purl: set() for *_, purl in pins}
    direct = {*direct_requirements(), "torch"}
    for name, pin, _, purl in pins:
        if name in direct:
            used[root].add(purl)
        for other, *_, needing in pins:
            if other in pin.required_by:
                used[needing].add(purl)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": _component("application", project["name"], project["version"], root)},
        "components": [
            _component("library", name, version, purl)
            | {
                "externalReferences": [
                    {
                        "type": "distribution",
                        "url": purl,
                        "hashes": [
                            {"alg": "SHA-256", "content": digest}
                            for digest in re.findall(r"--hash=sha256:([0-9a-f]{64})", pin.text)
                        ],
                    }
                ]
            }
            for name, pin, version, purl in pins
        ],
        "dependencies": [
            {"ref": purl, "dependsOn": sorted(needed_by_it)} for purl, needed_by_it in used.items()
        ],
    }


def _merged(first: Mapping[str, list[Entry]], second: Mapping[str, list[Entry]]) -> dict[str, list[Entry]]:
    """Return the pins of both; a pin that both have keeps who requires it in either."""
    merged = dict(first)
    for name, pins in second.items():
        others = frozenset[str]().union(*(pin.required_by for pin in pins))
        merged[name] = [Entry(pin.text, pin.required_by | others) for pin in first.get(name, pins)]
    return merged


def _described(pin: Entry) -> tuple[str, str]:
    """Return the version and the package URL of a pin."""
    name, version = re.findall(r"^([^=\[]+)(?:\[[^]]*\])?==([^ ;]+)", pin.text)[0]
    return version, f"pkg:pypi/{name}@{version.replace('+', '%2B')}"


def _component(kind: str, name: str, version: str, purl: str) -> dict[str, Any]:
    return {"type": kind, "bom-ref": purl, "name": name, "version": version, "purl": purl}


def _read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("command", choices=["requirements", "size", "sbom"])
    parser.add_argument(
        "--of", nargs="+", metavar="NAME", help="packages instead of the project's requirements"
    )
    arguments = parser.parse_args()
    locked = entries(_read("requirements.lock"))
    names = needed(locked, arguments.of or direct_requirements())
    if arguments.command == "size":
        sys.stdout.write(_sizes(names))
    elif arguments.command == "sbom":
        image = _merged({name: locked[name] for name in names}, entries(_read("torch.lock")))
        sys.stdout.write(json.dumps(sbom(image), indent=2) + "\n")
    else:
        sys.stdout.write("".join(f"{pin.text}\n" for name in names for pin in locked[name]))


if __name__ == "__main__":
    main()
