"""Every link of the documentation leads somewhere, and every page can be found."""

from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, anchors, links, name

INDEX = ROOT / "docs" / "README.md"
#: Read where they are: a data set's sources and the notes beside copied schemas.
BESIDE_FILES = {ROOT / "tests" / "data" / "SOURCES.md", ROOT / "tests" / "deploy" / "schemas" / "README.md"}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    """A link's file exists, and its anchor is a heading of that page."""
    for target, anchor in links(page):
        assert target.exists(), f"{name(page)} links to {target}"
        if anchor:
            assert anchor in anchors(target), f"{name(page)} links to #{anchor} of {name(target)}"


@pytest.mark.parametrize("start", [ROOT / "README.md", INDEX], ids=name)
def test_every_page_is_reachable(start: Path) -> None:
    """Following links from README and from the index of docs/ leads to every page."""
    found, waiting = {start}, [start]
    while waiting:
        for target, _ in links(waiting.pop()):
            if target.suffix == ".md" and target not in found:
                found.add(target)
                waiting.append(target)
    assert set(PAGES) - found - BESIDE_FILES == set()


def test_the_index_lists_every_page_of_docs_itself() -> None:
    """A reader of docs/README.md sees each page in its place."""
    listed = {target for target, _ in links(INDEX)}
    assert {page for page in PAGES if page.is_relative_to(INDEX.parent)} - listed == {INDEX}


def test_every_picture_of_docs_is_shown() -> None:
    """No picture outlives the page that it was drawn for."""
    shown = {target for page in PAGES for target, _ in links(page)}
    assert set((ROOT / "docs" / "images").iterdir()) - shown == set()
