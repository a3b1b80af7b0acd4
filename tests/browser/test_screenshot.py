"""The README's picture of the review page: `make browser` writes it."""

import io
import os
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import expect

from detector.detector import Detector, Finding
from detector.images.decode import decode
from detector.images.thumbnail import dnf_thumbnail
from detector.policy import decide
from tests.browser.conftest import OpenPage
from tests.site import RunningSite
from worker.contract.messages import Model, ViewScore
from worker.demo.samples import load_samples

SCREENSHOT = os.environ.get("DNF_TEST_SCREENSHOT")
# A photograph of which the default detector is uncertain.
SAMPLE = "real-astronaut.jpg"


@pytest.mark.skipif(not SCREENSHOT, reason="DNF_TEST_SCREENSHOT names no file")
def test_the_page_shows_what_the_default_detector_says_of_a_sample(
    site: RunningSite, open_page: OpenPage
) -> None:
    """Score, thresholds, views and feature in the picture are those of the default bundle, none made up."""
    detector = Detector.load("default", device="cpu")
    manifest = detector.bundle.manifest
    thresholds = manifest.thresholds
    data = next(sample for sample in load_samples() if sample.file == SAMPLE).read()
    (finding,) = detector.examine([detector.prepare(decode(data).pixels)])
    event = site.verdict(
        "upload-4711",
        picture=data,
        score=finding.probability,
        feature=dnf_thumbnail(finding.dnf),
        metadata={"user": "u-17", "country": "DE"},
        thresholds=thresholds,
        verdict=decide(finding.probability, thresholds),
        model=Model(name=manifest.name, version=manifest.version, digest=detector.bundle.digest),
        **_views(finding),
    )
    site.open_review(event)
    page = open_page(site, "Ada", "moderator", size=(1280, 800))
    page.keyboard.press("c")
    expect(page.locator(".workbench[data-lease]")).to_be_visible()
    for key in ("v", "o"):
        page.keyboard.press(key)
    expect(page.locator("#picture > img")).to_have_css("filter", "none")
    for image in page.locator("main img").all():
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth > 0)")
    Image.open(io.BytesIO(page.screenshot())).convert("RGB").save(str(SCREENSHOT), "WEBP", quality=90)


def _views(finding: Finding) -> dict[str, Any]:
    """Return what a verdict says of the views."""
    return {
        "strongest_view": finding.strongest,
        "views": tuple(
            ViewScore(
                x=view.place.x,
                y=view.place.y,
                width=view.place.width,
                height=view.place.height,
                score=view.probability,
            )
            for view in finding.views
        ),
    }
