"""The contact sheet."""

import base64
import re
from collections.abc import Callable
from dataclasses import replace

from detector.bundle.thresholds import Thresholds
from worker.contract.messages import ViewScore
from worker.demo.contact_sheet import ContactSheet, JudgedPicture, Outline, RejectedUpload, render_html

MakePicture = Callable[..., bytes]


def _sheet(make_picture: MakePicture, *, judged: int = 4, title: str = "A picture") -> ContactSheet:
    pictures = [
        JudgedPicture(
            title=title,
            picture=make_picture(seed, size=(200, 120)),
            thumbnail=make_picture(seed + 100, size=(128, 128), format="PNG"),
            verdict="generated" if seed else "real",
            score=0.93 if seed else 0.02,
            milliseconds=41.5,
            truth="generated",
            origin="diffusion autoencoder",
            credit="CC0",
        )
        for seed in range(judged)
    ]
    rejected = [RejectedUpload("notes.jpg", "not_an_image", "The bytes are no picture.")]
    return ContactSheet(pictures, rejected, "tiny 1", Thresholds(review_from=0.4, generated_from=0.9))


def test_the_page_is_self_contained(make_picture: MakePicture) -> None:
    """Every picture is embedded unchanged, and no other resource is loaded."""
    sheet = _sheet(make_picture)
    page = render_html(sheet)
    inside = [base64.b64decode(data) for data in re.findall(r"data:image/\w+;base64,([^\"]+)", page)]
    assert inside == [data for item in sheet.judged for data in (item.picture, item.thumbnail)]
    assert not re.search(r"https?://|<script|<link|@import", page)


def test_the_view_of_the_noise_feature_is_outlined_on_its_picture(make_picture: MakePicture) -> None:
    """In the picture's own pixels, scaled as the picture is; without views there is none."""
    sheet = _sheet(make_picture)
    view = ViewScore(x=16, y=24, width=128, height=96, score=0.9)
    outlined = replace(sheet.judged[0], outline=Outline(200, 120, view))
    page = render_html(replace(sheet, judged=[outlined, *sheet.judged[1:]]))
    assert page.count("<svg") == 1
    assert 'viewBox="0 0 200 120" preserveAspectRatio="xMidYMid meet"' in page
    assert page.count('x="16" y="24" width="128" height="96"') == 2
    assert "object-fit: contain" in page  # the same fit, in the words of style sheets


def test_text_is_escaped_in_the_page(make_picture: MakePicture) -> None:
    """A file name with markup is shown, not executed."""
    page = render_html(_sheet(make_picture, title='<img src=x onerror="alert(1)">'))
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=&#34;alert(1)&#34;&gt;" in page


def test_the_page_shows_verdict_score_truth_reasons_and_the_limits_of_a_score(
    make_picture: MakePicture,
) -> None:
    """The page has everything that a moderator needs."""
    page = render_html(_sheet(make_picture))
    for text in [
        "4 pictures judged: 1 real, 0 needs review, 3 generated. Rejected: 1.",
        "score 0.930",
        "✗ Actually a generated picture",
        "✓ Actually a generated picture",
        "not_an_image",
        "A score is a signal, not proof.",
        "diffusion autoencoder · 42 ms · CC0",
    ]:
        assert text in page


def test_a_sheet_without_pictures_or_thumbnails_is_rendered(
    make_picture: MakePicture,
) -> None:
    """Nothing judged, nothing rejected, or a thumbnail that is not inline: none is an error."""
    thresholds = Thresholds(review_from=0.4, generated_from=0.9)
    bare = JudgedPicture("x" * 300, make_picture(), None, verdict="review", score=0.5, milliseconds=1.0)
    for sheet in [ContactSheet([], [], "tiny", thresholds), ContactSheet([bare], [], "tiny", thresholds)]:
        assert "Verdicts" in render_html(sheet)


def test_a_picture_in_review_is_neither_right_nor_wrong(make_picture: MakePicture) -> None:
    """Only a decided verdict is compared with the truth."""
    picture = make_picture()
    agreements = [
        JudgedPicture("t", picture, None, verdict=verdict, score=0.5, milliseconds=1.0, truth=truth).agreement
        for verdict, truth in [
            ("real", "real"),
            ("generated", "generated"),
            ("real", "generated"),
            ("generated", "real"),
            ("review", "generated"),
            ("real", None),
        ]
    ]
    assert agreements == ["right", "right", "wrong", "wrong", "open", "open"]
