"""One person at the review page: keys, what is shown when, pictures, accessibility."""

import io
from typing import Any

import numpy as np
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Page, Response, expect

from tests.browser.conftest import OpenPage
from tests.site import RunningSite, StartSite, person

_AXE = Axe()


def claim(page: Page) -> None:
    """Claim an item by its key."""
    page.keyboard.press("c")
    expect(page.locator(".workbench[data-lease]")).to_be_visible()


def violations(page: Page, *rules: str) -> list[str]:
    """Return what axe finds wrong by these rules, or by all of its own, with the elements."""
    options: dict[str, Any] = {"resultTypes": ["violations"]}
    if rules:
        options["runOnly"] = {"type": "rule", "values": rules}
    found: list[dict[str, Any]] = _AXE.run(page, options=options).response["violations"]
    return [f"{each['id']}: {[node['html'][:200] for node in each['nodes'][:3]]}" for each in found]


def test_keys_alone_claim_reveal_outline_decide_undo_note_and_skip(
    site: RunningSite, open_page: OpenPage
) -> None:
    """Without the mouse: every step of the work has a key, and none of them works inside the note."""
    first, second = site.open_review(score=0.31), site.open_review(score=0.5)
    page = open_page(site)
    claim(page)
    assert page.locator(".workbench").get_attribute("data-review") == str(first)
    outline, feature, heat = (page.locator(f".overlay .{name}") for name in ("outline", "in-place", "heat"))
    for key, layer in (("o", outline), ("f", feature), ("h", heat)):
        expect(layer).to_be_hidden()
        page.keyboard.press(key)
        expect(layer).to_be_visible()
        page.keyboard.press(key)
        expect(layer).to_be_hidden()
    page.keyboard.press("v")
    expect(page.locator("#picture")).not_to_have_class("picture blurred")
    page.keyboard.press("z")
    expect(page.locator("#zoom-state")).to_have_text("100 %")
    assert page.locator("#picture").evaluate("e => e.getBoundingClientRect().width") == 320
    page.keyboard.press("n")
    page.keyboard.type("goes far")
    expect(page.locator("#note")).to_have_value("goes far")
    page.keyboard.press("Escape")
    page.keyboard.press("2")
    page.keyboard.press("g")
    expect(page.locator(".workbench")).to_have_attribute("data-review", str(second))
    page.keyboard.press("u")
    expect(page.locator(".workbench")).to_have_attribute("data-review", str(first))
    page.keyboard.press("r")
    expect(page.locator(".workbench")).to_have_attribute("data-review", str(second))
    page.keyboard.press("s")
    expect(page.locator("h1")).to_contain_text("Nothing is left for you")
    page.keyboard.press("?")
    expect(page.locator("#help")).to_contain_text("Decide: generated")
    page.keyboard.press("Escape")
    expect(page.locator("#help")).to_be_hidden()
    (event,) = site.outbox()
    assert (event["data"]["outcome"], event["data"]["basis"]) == ("real", "opinion")
    assert site.value("SELECT note FROM decisions WHERE undone_at IS NOT NULL") == "goes far"
    assert site.value("SELECT basis FROM decisions WHERE undone_at IS NOT NULL") == "source_found"


def test_keys_can_be_changed_and_switched_off(site: RunningSite, open_page: OpenPage) -> None:
    """Another key decides where it was chosen; switched off, G does nothing and the buttons still work."""
    site.open_review()
    site.open_review()
    page = open_page(site, path="/preferences")
    page.get_by_label("Decide: generated").fill("v")
    page.get_by_role("button", name="Save").click()
    expect(page.locator(".notice.error")).to_contain_text("v stands for both")
    page.get_by_label("Decide: generated").fill("j")
    with page.expect_navigation():
        page.get_by_role("button", name="Save").click()
    page.goto("/")
    claim(page)
    page.keyboard.press("g")
    page.keyboard.press("j")
    expect(page.locator("#undo")).to_contain_text("Decided Generated")

    page.goto("/preferences")
    page.get_by_label("Use single keys").uncheck()
    with page.expect_navigation():
        page.get_by_role("button", name="Save").click()
    page.goto("/")
    decisions = "SELECT count(*) FROM decisions"
    page.keyboard.press("g")
    page.keyboard.press("j")
    page.locator(".outcomes .real").click()
    expect(page.locator("h1")).to_contain_text("Nothing is waiting")
    assert site.value(decisions) == 2
    assert site.value(f"{decisions} WHERE outcome = 'real'") == 1


def test_pictures_are_blurred_until_a_key_and_are_those_that_were_judged(
    site: RunningSite, open_page: OpenPage
) -> None:
    """At load the computed style blurs picture and region; what is served has the verdict's pixels."""
    event = site.verdict()
    site.open_review(event)
    page = open_page(site)
    served: list[Response] = []
    page.on("response", lambda reply: served.append(reply) if "/picture" in reply.url else None)
    claim(page)
    images = [page.locator("#picture > img"), page.locator(".region img")]
    for image in images:
        expect(image).to_have_css("filter", "blur(28px) grayscale(1)")
    page.hover("#picture", force=True)
    for image in images:
        expect(image).to_have_css("filter", "blur(28px) grayscale(1)")
    page.keyboard.press("v")
    for image in images:
        expect(image).to_have_css("filter", "none")
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth > 0)")

    overview = next(reply for reply in served if reply.url.endswith("/picture"))
    headers = overview.headers
    assert headers["x-picture-sha256"] == event.data.picture.sha256
    assert (headers["cache-control"], headers["x-content-type-options"]) == ("no-store", "nosniff")
    judged = Image.open(io.BytesIO(site.pictures[event.data.check_id])).convert("RGB")
    shown = Image.open(io.BytesIO(overview.body()))
    assert np.array_equal(np.asarray(shown), np.asarray(judged))
    region = Image.open(io.BytesIO(next(r for r in served if "strongest" in r.url).body()))
    view = event.data.views[3]
    box = (view.x, view.y, view.x + view.width, view.y + view.height)
    assert np.array_equal(np.asarray(region), np.asarray(judged.crop(box)))


def test_an_overwritten_object_says_so_and_cannot_be_decided(site: RunningSite, open_page: OpenPage) -> None:
    """Before the claim and between look and decision; the item can be closed with its reason."""
    event = site.verdict()
    review = site.open_review(event)
    page = open_page(site)
    claim(page)
    key = event.subject.removeprefix(f"s3://{site.services.bucket}/")
    site.store_picture(key, site.make_picture(99, (320, 240)))
    page.keyboard.press("g")
    expect(page.locator(".notice.error")).to_contain_text("no longer the picture that was judged")
    page.reload()
    expect(page.locator(".viewer")).to_contain_text("no longer the picture that was judged")
    for button in page.locator(".outcomes button").all():
        expect(button).to_be_disabled()
    page.get_by_role("button", name="Close this item").click()
    expect(page.locator("h1")).to_contain_text("Nothing is waiting")
    assert site.value("SELECT closed_reason FROM reviews WHERE id = %s", review) == "picture_changed"
    assert site.outbox() == []


def test_a_blind_audit_hides_score_and_feature_until_it_is_decided(
    site: RunningSite, open_page: OpenPage
) -> None:
    """Neither the page, nor the lists, nor the addresses of the media tell; afterwards all of them do."""
    review = site.open_review(score=0.871, origin="audit")
    moderator = person("ada", "moderator")
    page = open_page(site)
    claim(page)
    for text in (page.content(), site.request("GET", "/items", moderator).text):
        assert "0.871" not in text
        assert ">generated<" not in text
    for part in ("feature", "picture?part=strongest"):
        assert site.request("GET", f"/reviews/{review}/{part}", moderator).status == 403
    assert "check" not in site.request("GET", "/items?score_from=0.8", moderator).text.split("<tbody>")[-1]
    assert "0.871" in site.request("GET", f"/reviews/{review}", person("eve", "auditor")).text
    page.keyboard.press("t")
    expect(page.locator("h1")).to_contain_text("Nothing is waiting")
    assert "0.871" in site.request("GET", f"/reviews/{review}", moderator).text
    (event,) = site.outbox()
    assert event["data"]["blind"] is True


def test_axe_finds_nothing_and_nothing_is_wider_than_a_phone(site: RunningSite, open_page: OpenPage) -> None:
    """On every page and in every state of the review page, in both colour schemes."""
    decided = site.open_review(site.verdict("decided", metadata={"user": "u-1", "a": "x" * 200}))
    page = open_page(site, "ada", "senior", "auditor", "admin")

    def check(name: str) -> None:
        page.emulate_media(color_scheme="light")
        assert violations(page) == [], (name, "light")
        page.emulate_media(color_scheme="dark")
        # Of its rules this one depends on colours.
        assert violations(page, "color-contrast") == [], (name, "dark")
        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        page.set_viewport_size({"width": 1280, "height": 800})

    claim(page)
    for key in "vohf":
        page.keyboard.press(key)
    check("revealed")
    page.keyboard.press("?")
    check("help")
    page.keyboard.press("Escape")
    page.keyboard.press("g")
    expect(page.locator("#undo")).to_contain_text("Decided")
    check("undo")
    for number in range(3):
        site.open_review(site.verdict(f"waiting-{number}"), origin="audit" if number else "uncertain")
    for path in (
        "/items",
        f"/reviews/{decided}",
        "/figures",
        "/audit",
        "/webhooks",
        "/preferences",
        "/no-such-page",
    ):
        page.goto(path)
        check(path)


def test_reading_works_without_javascript(site: RunningSite, open_page: OpenPage) -> None:
    """Lists, items, pictures, figures and the audit; only claiming and deciding need the module."""
    review = site.open_review(site.verdict("upload-1"))
    page = open_page(site, "eve", "moderator", "auditor", java_script_enabled=False)
    assert "Claiming and deciding need JavaScript" in page.content()
    page.goto("/items")
    page.get_by_role("link", name="upload-1").click()
    expect(page.locator("#picture > img")).to_be_visible()
    expect(page.locator(".scale .value")).to_have_text("0.500")
    assert str(review) in page.url
    for path, words in (("/figures", "Age of the queue"), ("/audit", "Who did what")):
        page.goto(path)
        expect(page.locator("main")).to_contain_text(words)


def test_an_admin_adds_an_endpoint_and_sees_its_secret_once(
    start_site: StartSite, open_page: OpenPage
) -> None:
    """A private address is refused in words; a moderator has no such page."""
    site = start_site(webhook_networks=("127.0.0.1/32",))
    page = open_page(site, "ada", "admin", path="/webhooks")
    page.get_by_label("Address").fill("http://10.0.0.1/hook")
    page.get_by_label("image.decision.v1").check()
    page.get_by_role("button", name="Add").click()
    expect(page.locator(".notice.error")).not_to_be_empty()
    page.get_by_label("Address").fill("https://127.0.0.1:9/hook")
    page.get_by_role("button", name="Add").click()
    expect(page.locator("#secret")).to_contain_text("whsec_")
    expect(page.locator("tbody")).to_contain_text("https://127.0.0.1:9/hook")
    page.get_by_role("button", name="Disable").click()
    expect(page.locator("tbody")).to_contain_text("disabled")
    page.reload()
    expect(page.locator("#secret")).to_be_hidden()
    assert site.request("GET", "/webhooks", person("bob")).status == 403


def test_a_break_is_suggested_after_the_minutes_that_the_person_chose(
    site: RunningSite, open_page: OpenPage
) -> None:
    """Fifteen minutes of work without a pause; a pause of five minutes starts them anew."""
    assert site.request("PUT", "/preferences", person("ada"), {"break_minutes": 15}).status == 200
    page = open_page(site)
    page.clock.install()
    page.reload()

    def work(minutes: int) -> None:
        for _ in range(minutes // 2):
            page.keyboard.press("Shift")
            page.clock.run_for("02:00")

    work(12)
    page.clock.run_for("06:00")
    work(12)
    expect(page.locator("#break")).to_have_count(0)
    work(6)
    expect(page.locator("#break")).to_contain_text("Look away for a while")
    page.get_by_role("button", name="Later").click()
    expect(page.locator("#break")).to_have_count(0)
