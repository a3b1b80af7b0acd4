"""A browser."""

import os
import shutil
from collections.abc import Iterator
from typing import Any, Protocol

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.conftest import PATIENCE
from tests.site import RunningSite, person

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


def launch_options() -> dict[str, Any]:
    """Return how to start the browser; the tests are skipped where there is none."""
    program = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(_PROGRAMS)} is on PATH")
    # As root Chromium has no sandbox.
    return {"executable_path": program, "args": ["--no-sandbox"] if os.geteuid() == 0 else []}


class OpenPage(Protocol):
    """Opens pages."""

    def __call__(
        self,
        site: RunningSite,
        name: str = "ada",
        *groups: str,
        path: str = "/",
        size: tuple[int, int] = (1280, 800),
        **options: Any,
    ) -> Page:
        """Return a page in a browser context of its own, opened by a person of these groups."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Provide Debian's Chromium, or another one on PATH; its event loop ends with the module that uses it."""
    with sync_playwright() as playwright:
        expect.set_options(timeout=5_000 * PATIENCE)
        running = playwright.chromium.launch(**launch_options())
        yield running
        running.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Provide a function that opens the page for a person; an error in the browser fails the test."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def opened(
        site: RunningSite,
        name: str = "ada",
        *groups: str,
        path: str = "/",
        size: tuple[int, int] = (1280, 800),
        **options: Any,
    ) -> Page:
        context = browser.new_context(
            base_url=site.url,
            viewport={"width": size[0], "height": size[1]},
            extra_http_headers=person(name, *groups),
            **options,
        )
        context.set_default_timeout(10_000 * PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        # A refused request is logged too; those are what tests look at themselves.
        page.on(
            "console",
            lambda message: (
                complaints.append(message.text)
                if message.type == "error" and "Failed to load resource" not in message.text
                else None
            ),
        )
        page.goto(path)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []
