#!/usr/bin/env python3
"""The locked libraries of the container image: `image_contents.py requirements` and `image_contents.py size`.

`requirements` prints the entries of requirements.lock, with hashes, that the project and its extras for
operators need, without those of development and demonstration. `size` prints their size on disk in the
environment that runs it.
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
    own = {"sympy", "networkx", "mpmath"} - libraries.keys()
    project = sum(p.stat().st_size for p in (ROOT / "detector").rglob("*") if "__pycache__" not in p.parts)
    project += sum(p.stat().st_size for p in (ROOT / "worker").rglob("*") if "__pycache__" not in p.parts)
    largest = sorted(libraries.items(), key=lambda item: -item[1])[:5]
    rows = [
        (
            f"torch {importlib.metadata.version('torch')} and its own requirements",
            sum(map(megabytes, ["torch", *own])),
        ),
        (f"{len(libraries)} locked libraries", sum(libraries.values())),
        *((f"  {name}", size) for name, size in largest),
        ("detector, worker and the default bundle", project / 1e6),
    ]
    return "".join(f"{size:8.1f} MB  {what}\n" for what, size in rows)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("command", choices=["requirements", "size"])
    parser.add_argument(
        "--of", nargs="+", metavar="NAME", help="packages instead of the project's requirements"
    )
    arguments = parser.parse_args()
    locked = entries((ROOT / "requirements.lock").read_text(encoding="utf-8"))
    names = needed(locked, arguments.of or direct_requirements())
    if arguments.command == "size":
        sys.stdout.write(_sizes(names))
    else:
        sys.stdout.write("".join(f"{pin.text}\n" for name in names for pin in locked[name]))


if __name__ == "__main__":
    main()
