"""The project's Markdown pages and what they refer to."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],  # noqa: S607 - git, of PATH
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    if (ROOT / name).exists()
)
#: Pages that describe the present; the others tell what was measured or decided at some time.
CURRENT = [page for page in PAGES if page.name not in {"CHANGELOG.md", "decisions.md", "experiments.md"}]

_BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", flags=re.MULTILINE | re.DOTALL)


def name(page: Path) -> str:
    """Return a page's path in the repository."""
    return str(page.relative_to(ROOT))


def read(page: Path) -> str:
    """Return a page's text."""
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """Return a page's text without its blocks of code."""
    return _BLOCK.sub("", read(page))


def blocks(page: Path, language: str = "") -> list[str]:
    """Return a page's blocks of code in a language, shell by default."""
    return [match[2] for match in _BLOCK.finditer(read(page)) if match[1] == language]


def code(page: Path) -> Iterator[str]:
    """Yield what stands between backquotes in the prose, and each line of the shell blocks."""
    for block in blocks(page):
        yield from block.replace("\\\n", " ").splitlines()
    yield from re.findall(r"`([^`]+)`", prose(page).replace("\n", " "))


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """Yield (file, anchor) of each relative link and image."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield (page.parent / path).resolve() if path else page, anchor


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as code hosts make them."""
    titles = re.findall(r"^#{1,6} +(.+?) *$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
