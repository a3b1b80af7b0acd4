"""Lists, filters, exports and figures."""

import csv
import io

from tests.site import RunningSite, StartSite, person
from tests.verdicts import verdict_event

MODERATOR, AUDITOR = person("ada", "moderator"), person("eve", "auditor")


def rows(page: str) -> list[str]:
    """Return the check ids of a list, in its order."""
    body = page.partition("<tbody>")[2].partition("</tbody>")[0]
    return [part.partition('"')[0] for part in body.split('class="mono" title="')[1:]]


def decide(site: RunningSite, who: dict[str, str], outcome: str) -> None:
    """Claim the next item and decide it."""
    claimed = site.request("POST", "/reviews/claim", who).json["review"]
    lease = site.value("SELECT lease FROM reviews WHERE id = %s", claimed)
    body = {"lease": str(lease), "outcome": outcome, "note": "=1+1"}
    assert site.request("POST", f"/reviews/{claimed}/decide", who, body).status == 200


def test_lists_filter_by_state_score_age_policy_metadata_and_model_and_find_by_id_and_key(
    site: RunningSite,
) -> None:
    """Each filter alone; what waits comes in the queue's order, nearest to a threshold first."""
    site.open_review(site.verdict("far", score=0.55, metadata={"country": "DE"}))
    site.open_review(site.verdict("near", score=0.31, policy="strict"))
    site.open_review(site.verdict("gone", score=0.79))
    with site.database.transaction() as tx:
        tx.execute("UPDATE reviews SET opened_at = now() - interval '3 days' WHERE check_id = 'gone'")

    def listed(query: str) -> list[str]:
        reply = site.request("GET", f"/items?{query}", MODERATOR)
        assert reply.status == 200
        return rows(reply.text)

    assert listed("") == ["near", "gone", "far"] or listed("") == ["gone", "near", "far"]
    assert listed("score_from=0.5&score_to=0.6") == ["far"]
    assert sorted(listed("days=1")) == ["far", "near"]
    assert listed("policy=strict") == ["near"]
    assert listed("model=other") == []
    assert len(listed("model=default+4")) == 3
    assert listed("metadata_key=country&metadata_value=DE") == ["far"]
    assert listed("search=far") == ["far"]
    assert listed("search=pictures/ne") == ["near"]
    assert listed("list=decided") == []
    decide(site, MODERATOR, "real")
    assert len(listed("list=decided")) == len(listed("list=mine")) == 1
    assert listed("list=all&state=decided") == listed("list=decided")
    assert site.request("GET", "/items?score_from=2", MODERATOR).status == 422
    assert site.request("GET", "/items?after=nonsense", MODERATOR).status == 422


def test_a_long_list_has_pages_and_every_item_once(site: RunningSite) -> None:
    """Fifty on a page; the last page names no next one."""
    for number in range(120):
        site.open_review(verdict_event(f"check-{number:03}"))
    found: list[str] = []
    address: str | None = "/items"
    while address:
        page = site.request("GET", address, MODERATOR).text
        found += rows(page)
        links = page.partition('<p class="more">')[2]
        address = links.partition('href="')[2].partition('"')[0].replace("&amp;", "&") or None
    assert sorted(found) == [f"check-{number:03}" for number in range(120)]


def test_exports_have_every_item_and_no_formula(site: RunningSite) -> None:
    """CSV and JSON without a cap, as text a spreadsheet does not compute; who exports is in the audit."""
    event = site.verdict("check-00")
    for number in range(60):
        site.open_review(site.again(event, f"check-{number:02}"))
    decide(site, MODERATOR, "real")
    exported = site.request("GET", "/items.json?list=all", AUDITOR)
    assert "attachment" in exported.headers["Content-Disposition"]
    assert len(exported.json) == 60
    lines = list(csv.DictReader(io.StringIO(site.request("GET", "/items.csv?list=all", AUDITOR).text)))
    assert len(lines) == 60
    (decided,) = [line for line in lines if line["outcome"] == "real"]
    assert decided["note"] == "'=1+1"
    assert site.request("GET", "/items.json?search=no-such", AUDITOR).json == []
    assert site.value("SELECT count(*) FROM audit WHERE action = 'items_exported'") == 3


def test_an_export_tells_a_moderator_no_score_of_a_waiting_audit(site: RunningSite) -> None:
    """An auditor reads it."""
    site.open_review(score=0.9, origin="audit")
    hidden = site.request("GET", "/items.json", MODERATOR).json[0]
    assert (hidden["score"], hidden["verdict"]) == (None, None)
    assert site.request("GET", "/items.json", AUDITOR).json[0]["score"] == 0.9


def test_a_second_opinion_is_not_told_the_first(start_site: StartSite) -> None:
    """Neither by the item, nor by the lists, nor by the export; the auditor sees both."""
    site = start_site(review_double_share=1, review_undo_seconds=0)
    review = site.open_review(site.verdict("upload-1"))
    decide(site, MODERATOR, "edited")
    second = person("bob")
    assert site.request("POST", "/reviews/claim", second).json["review"] == str(review)
    for path in ("/", f"/reviews/{review}"):
        assert "Earlier decisions" not in site.request("GET", path, second).text
    assert "Edited" not in site.request("GET", "/items?list=all", second).text.partition("<tbody>")[2]
    assert site.request("GET", "/items.json?list=all", second).json[0]["outcome"] is None
    assert "Earlier decisions" in site.request("GET", f"/reviews/{review}", AUDITOR).text


def test_figures_have_axes_and_name_nobody(site: RunningSite) -> None:
    """Queue, pace, agreement, overturned, false positives; no person's name or pseudonym."""
    for origin in ("uncertain", "audit", "audit"):
        site.open_review(score=0.9 if origin == "audit" else 0.5, origin=origin)
    for outcome in ("real", "real", "generated"):
        decide(site, MODERATOR, outcome)
    page = site.request("GET", "/figures?days=1", AUDITOR).text
    for title in (
        "Age of the queue",
        "Decisions an hour",
        "Time to the first decision",
        "Agreement on doubles",
        "Overturned by appeals",
        "Photographs flagged as generated",
    ):
        assert title in page
    assert page.count('class="plot"') >= 3
    assert page.count('class="axis"') == page.count('class="plot"')
    assert str(site.value("SELECT id FROM moderators WHERE name = 'ada'")) not in page
