"""Several people at the review page: claims, decisions, what is refused, what others see."""

import asyncio
import os
import threading
from collections.abc import Callable

from playwright.async_api import async_playwright
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage, launch_options
from tests.conftest import PATIENCE
from tests.site import RunningSite, StartSite, person

# `make browser` lets twenty moderators drain two hundred.
_MODERATORS = int(os.environ.get("DNF_TEST_MODERATORS", "4"))
_REVIEWS = 10 * _MODERATORS


def shown(page: Page) -> str:
    """Return the id of the review that a page shows as claimed."""
    return page.locator(".workbench[data-lease]").get_attribute("data-review") or ""


def test_moderators_drain_the_queue_and_nobody_sees_anothers_item(site: RunningSite) -> None:
    """Each works with keys alone until nothing is left: each review has one decision and one event."""
    event = site.verdict(size=(96, 80))
    for number in range(_REVIEWS):
        site.open_review(site.again(event, f"check-{number}"))
    seen: dict[str, list[str]] = {}

    async def work(browser: object, name: str) -> None:
        context = await browser.new_context(  # type: ignore[attr-defined]
            base_url=site.url, extra_http_headers=person(name), viewport={"width": 480, "height": 480}
        )
        context.set_default_timeout(60_000 * PATIENCE)
        page = await context.new_page()
        await page.goto("/")
        await page.keyboard.press("c")
        seen[name] = []
        while True:
            await page.wait_for_function(
                "last => document.querySelector('[data-rest]:not([data-rest=ready])')"
                " || (document.querySelector('.workbench[data-lease]')?.dataset.review ?? last) !== last",
                arg=seen[name][-1] if seen[name] else "",
            )
            bench = page.locator(".workbench[data-lease]")
            if not await bench.count():
                break
            seen[name].append(str(await bench.get_attribute("data-review")))
            await page.keyboard.press("g")
        await context.close()

    async def everyone() -> None:
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(**options)
            await asyncio.gather(*(work(browser, f"moderator-{number}") for number in range(_MODERATORS)))
            await browser.close()

    options = launch_options()
    _in_thread(lambda: asyncio.run(everyone()))
    items = [review for reviews in seen.values() for review in reviews]
    assert len(items) == len(set(items)) == _REVIEWS
    assert len(seen) == _MODERATORS
    assert site.value("SELECT count(*) FROM decisions WHERE undone_at IS NULL") == _REVIEWS
    events = site.outbox()
    assert len({event["data"]["check_id"] for event in events}) == len(events) == _REVIEWS


def test_a_decision_after_the_end_of_the_claim_is_refused_in_words(
    start_site: StartSite, open_page: OpenPage
) -> None:
    """While A is cut off the lease ends and B decides; A reads why nothing was taken; there is one event."""
    site = start_site(review_lease_seconds=round(PATIENCE))
    review = site.open_review()
    slow, quick = open_page(site, "slow"), open_page(site, "quick")
    slow.keyboard.press("c")
    expect(slow.locator(".workbench[data-lease]")).to_be_visible()
    slow.context.set_offline(True)
    expect(slow.locator(".lease")).to_contain_text("claim ended")
    expect(quick.locator("h1")).to_contain_text("1 item waiting")
    quick.keyboard.press("c")
    expect(quick.locator(".workbench[data-lease]")).to_have_attribute("data-review", str(review))
    slow.context.set_offline(False)
    slow.keyboard.press("g")
    expect(slow.locator(".notice.error")).to_contain_text(
        "Your claim has ended, so the decision was not taken"
    )
    quick.keyboard.press("r")
    expect(quick.locator("h1")).to_contain_text("Nothing is waiting")
    slow.keyboard.press("g")
    expect(slow.locator(".notice.error")).to_contain_text("has been decided already")
    slow.keyboard.press("c")
    expect(slow.locator("h1")).to_contain_text("Nothing is waiting")
    (event,) = site.outbox()
    assert event["data"]["outcome"] == "real"


def test_an_appeal_is_one_its_decider_is_never_offered_it_and_everyone_sees_the_new_decision(
    site: RunningSite, open_page: OpenPage
) -> None:
    """Two requests are one appeal; a senior overturns with revision 2; open pages change in two seconds."""
    review = site.open_review(check_id="upload-1")
    first = open_page(site, "first")
    first.keyboard.press("c")
    expect(first.locator(".workbench[data-lease]")).to_be_visible()
    first.keyboard.press("g")
    expect(first.locator("h1")).to_contain_text("Nothing is waiting")

    appeals = [_appeal(site, "upload-1") for _ in range(2)]
    assert appeals[0] == appeals[1]
    expect(first.locator("h1")).to_contain_text("Nothing is left for you")
    first.keyboard.press("c")
    expect(first.locator("#status")).to_contain_text("Nothing is left for you")

    watching = [
        open_page(site, "auditor", "auditor", path=f"/reviews/{review}"),
        open_page(site, "other", "moderator", path="/items?list=appeals"),
    ]
    senior = open_page(site, "senior", "senior")
    senior.keyboard.press("c")
    expect(senior.locator(".banner.appeal")).to_contain_text("I drew it.")
    senior.keyboard.press("r")
    seconds = 2000 * PATIENCE
    expect(watching[0].locator(".earlier li").first).to_contain_text("Real", timeout=seconds)
    expect(watching[1].locator("tbody tr").first).to_contain_text("rev. 2", timeout=seconds)
    before, after = site.outbox()
    assert (after["data"]["revision"], after["data"]["supersedes"]) == (2, before["id"])
    assert after["data"]["appeal"] == appeals[0]


def test_an_undone_decision_leaves_no_event_and_the_item_with_its_moderator(
    site: RunningSite, open_page: OpenPage
) -> None:
    """Undo takes the decision back within ten seconds, and its item is claimed again."""
    review = site.open_review()
    page = open_page(site)
    page.keyboard.press("c")
    expect(page.locator(".workbench[data-lease]")).to_be_visible()
    page.keyboard.press("e")
    expect(page.locator("#undo")).to_contain_text("Decided Edited")
    page.keyboard.press("u")
    expect(page.locator(".workbench[data-lease]")).to_have_attribute("data-review", str(review))
    expect(page.locator("#undo")).to_be_empty()
    assert site.outbox() == []


def test_others_claims_are_not_shown_as_an_empty_queue(site: RunningSite, open_page: OpenPage) -> None:
    """Whoever comes second reads that others hold every item, and hears when one comes back."""
    site.open_review()
    first, second = open_page(site, "first"), open_page(site, "second")
    first.keyboard.press("c")
    expect(first.locator(".workbench[data-lease]")).to_be_visible()
    expect(second.locator("h1")).to_contain_text("Others hold every waiting item")
    first.keyboard.press("s")
    expect(first.locator("h1")).to_contain_text("Nothing is left for you")
    expect(second.locator("h1")).to_contain_text("1 item waiting")


def _appeal(site: RunningSite, check_id: str) -> str:
    """Post an appeal as a platform does, and return its id."""
    headers = {**person("boss", "admin"), "Idempotency-Key": "k-1"}
    reply = site.request("POST", f"/v1/checks/{check_id}/appeals", headers, {"reason": "I drew it."})
    assert reply.status in {200, 201}, reply.text
    return str(reply.json["id"])


def _in_thread(work: Callable[[], None]) -> None:
    """Run an event loop of its own: the browser of the other tests has this thread's."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again below
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
