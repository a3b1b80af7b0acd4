"""The structure of the two packages: every import points to a lower floor, and heavy libraries load late."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Top floor first; rooms of one floor do not import each other. What a room holds may import within the room.
FLOORS = {
    "worker": [
        ["cli"],
        ["demo"],
        ["web"],
        ["relay"],
        ["operations"],
        ["process"],
        ["client"],
        ["checks"],
        ["broker"],
        ["storage"],
        ["webhooks"],
        ["reviews"],
        ["database"],
        ["telemetry"],
        ["contract"],
        ["settings"],
        ["embedded"],
    ],
    "detector": [
        ["cli"],
        ["recalibration"],
        ["crossvalidation"],
        ["training", "evaluation", "benchmark"],
        ["scoring"],
        ["detector", "policy", "metrics"],
        ["acceleration"],
        ["networks"],
        ["corpus"],
        ["bundle"],
        ["images"],
        ["terminal", "progress"],
    ],
}


def _modules(package: str) -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / package).rglob("*.py")):
        dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        yield dotted.removesuffix(".__init__"), path


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def _imports(path: Path, names: frozenset[str]) -> list[tuple[str, bool]]:
    """Return each imported module of `names`, and whether it is imported inside a function."""
    tree, imported = _tree(path), []
    inner = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        found: list[str] = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found = [
                f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in names else node.module
                for alias in node.names
            ]
        imported += [(name, id(node) in inner) for name in found if name in names]
    return imported


def _floor(package: str, module: str) -> int:
    room = module.split(".")[1] if "." in module else "cli"
    return next(number for number, rooms in enumerate(FLOORS[package]) if room in rooms)


@pytest.mark.parametrize("package", FLOORS)
def test_every_import_points_to_a_lower_floor(package: str) -> None:
    """A room imports itself and the floors below it."""
    names = frozenset(name for name, _ in _modules(package))
    upwards = [
        f"{module} -> {imported}"
        for module, path in _modules(package)
        for imported, _ in _imports(path, names)
        if "." in imported
        and module.split(".")[1:2] != imported.split(".")[1:2]
        and _floor(package, module) >= _floor(package, imported)
    ]
    assert upwards == []


@pytest.mark.parametrize("package", FLOORS)
def test_no_two_modules_import_each_other(package: str) -> None:
    """Neither directly nor around a circle; imports inside functions count too."""
    names = frozenset(name for name, _ in _modules(package))
    TopologicalSorter(
        {module: {name for name, _ in _imports(path, names)} - {module} for module, path in _modules(package)}
    ).prepare()


def test_the_detector_knows_nothing_of_queues_and_the_wheel_nothing_of_the_repository() -> None:
    """`detector` never imports `worker`, and neither imports `tests` or `deploy`."""
    foreign = {"detector": ("worker", "tests", "deploy"), "worker": ("tests", "deploy")}
    for package, packages in foreign.items():
        for module, path in _modules(package):
            for node in ast.walk(_tree(path)):
                name = node.module or "" if isinstance(node, ast.ImportFrom) else ""
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [name]
                assert not any(each.split(".")[0] in packages for each in names), module


HEAVY = frozenset(
    {"PIL", "boto3", "botocore", "celery", "diffusers", "kombu", "numpy", "rich", "structlog", "torch"}
)


def _loaded(program: str, *arguments: str, watched: frozenset[str]) -> list[str]:
    """Return which of these modules are loaded when a program has ended."""
    watching = (
        f"import atexit, sys; atexit.register(lambda: print(*sorted({set(watched)} & sys.modules.keys())))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", f"{watching}\n{program}", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=ROOT,
    )
    return finished.stdout.splitlines()[-1].split()


def test_a_platform_that_imports_the_client_loads_no_heavy_library() -> None:
    """Those of the model, Celery's, of logs and metrics; the store's is loaded when a file is uploaded."""
    assert _loaded("import worker.client", watched=HEAVY | {"prometheus_client"}) == []


@pytest.mark.parametrize("package", ["worker", "detector"])
@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_load_no_more_than_they_print(package: str, option: str) -> None:
    """The commands are loaded when they are called; rich prints, and is light."""
    watched = HEAVY - {"rich"} | {"fastapi", "prometheus_client", "psycopg", "pydantic", "redis"}
    assert _loaded(f"from {package}.cli import main; main()", option, watched=watched) == []
