#!/usr/bin/env python3
"""What the container image holds of the lock: `image_contents.py requirements` and `image_contents.py size`.

`requirements` writes the entries of requirements.lock, with their hashes, that the project and its extras for
operators need, and nothing of what only development and demonstrations do. `size` adds up what those entries
take on disk in the environment that runs it.
"""

import argparse
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("gpu", "otel")
# What the last stages of the Dockerfile leave out of PyTorch.
DROPPED = ("torch/include/", "torch/test/", "torch/share/", "torch/bin/")
KEPT = "torch/bin/torch_shm_manager"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Entry(NamedTuple):
    """One pin of the lock: its lines with all hashes, and the names of those that require it."""

    text: str
    required_by: frozenset[str]


def entries(lock: str) -> dict[str, list[Entry]]:
    """Return the lock's pins by name; several where markers choose between versions."""
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
    """Return what `roots` need, themselves included, sorted. Raises KeyError for an unknown root."""
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
    """Return the names that the project requires by itself and for `extras`, without torch."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(x for e in extras for x in project["optional-dependencies"][e])]
    names = {match[0] for line in lines if (match := _NAME.match(line))}
    return names - {"torch"}


def megabytes(distribution: str) -> float:
    """Return what a distribution's files take here, in units of 1,000,000 bytes, as the image keeps them."""
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
            return False  # of another platform

    libraries = {name: megabytes(name) for name in names if installed(name)}
    own = {"sympy", "networkx", "mpmath"} - libraries.keys()
    project = sum(p.stat().st_size for p in (ROOT / "detector").rglob("*") if "__pycache__" not in p.parts)
    project += sum(p.stat().st_size for p in (ROOT / "worker").rglob("*") if "__pycache__" not in p.parts)
    largest = sorted(libraries.items(), key=lambda item: -item[1])[:5]
    rows = [
        (
            f"torch {importlib.metadata.version('torch')} and what only it needs",
            sum(map(megabytes, ["torch", *own])),
        ),
        (f"{len(libraries)} locked libraries", sum(libraries.values())),
        *((f"  {name}", size) for name, size in largest),
        ("detector, worker and the default bundle", project / 1e6),
    ]
    return "".join(f"{size:8.1f} MB  {what}\n" for what, size in rows)


def main() -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("command", choices=["requirements", "size"])
    parser.add_argument("--of", nargs="+", metavar="NAME", help="instead of what the project needs")
    arguments = parser.parse_args()
    locked = entries((ROOT / "requirements.lock").read_text(encoding="utf-8"))
    names = needed(locked, arguments.of or direct_requirements())
    if arguments.command == "size":
        sys.stdout.write(_sizes(names))
    else:
        sys.stdout.write("".join(f"{pin.text}\n" for name in names for pin in locked[name]))


if __name__ == "__main__":
    main()
