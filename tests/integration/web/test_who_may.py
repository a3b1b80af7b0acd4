"""Who may come in, and what each of them may do."""

import json
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, OctKey

from tests.site import RunningSite, StartSite, person
from worker.web.identity import OneTimeLinks

ISSUER, AUDIENCE = "https://login.example.org", "review"


def test_an_identity_header_from_elsewhere_than_a_trusted_proxy_is_refused(start_site: StartSite) -> None:
    """The request comes from this machine, and only another network is trusted: 401 for page and data."""
    site = start_site(web_trusted_proxies=("10.0.0.0/8",))
    forged = {**person("boss", "admin"), "X-Forwarded-For": "10.1.2.3", "Forwarded": "for=10.1.2.3"}
    for path in ("/", "/items", "/audit", "/live"):
        assert site.request("GET", path, forged).status == 401
    assert site.request("POST", "/reviews/claim", forged).status == 401
    reply = site.request("GET", "/items", {**forged, "Accept": "application/json"})
    assert (reply.headers["Content-Type"], reply.json["reason"]) == (
        "application/problem+json",
        "not_identified",
    )


def test_a_request_without_a_person_is_refused_whoever_sends_it(site: RunningSite) -> None:
    """A trusted proxy that names nobody lets nobody in."""
    assert site.request("GET", "/").status == 401
    assert site.request("GET", "/", {"X-Forwarded-User": "  "}).status == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none", "Origin": "https://evil.example"},
        {},
    ],
    ids=str,
)
def test_a_request_that_another_site_sends_changes_nothing(
    site: RunningSite, headers: dict[str, str]
) -> None:
    """A browser adds the person's identity to whatever it sends; only the page's own origin counts."""
    site.open_review()
    reply = site.request("POST", "/reviews/claim", {**person("ada"), **headers}, same_origin=False)
    assert (reply.status, reply.json["reason"]) == (403, "cross_site")
    assert site.value("SELECT count(*) FROM reviews WHERE lease IS NOT NULL") == 0


def test_the_page_knows_its_own_origin_behind_a_proxy_that_ends_tls(
    site: RunningSite, start_site: StartSite
) -> None:
    """By the host that the browser names, or by the public URL where the proxy changes it."""
    host = site.url.removeprefix("http://")
    behind = {**person("ada"), "Origin": f"https://{host}"}
    assert site.request("POST", "/reviews/claim", behind, same_origin=False).status == 200
    public = start_site(web_public_url="https://review.example.org")
    named = {**person("ada"), "Origin": "https://review.example.org"}
    assert public.request("POST", "/reviews/claim", named, same_origin=False).status == 200
    assert public.request("POST", "/reviews/claim", person("ada")).status == 403


def test_a_body_that_nobody_asked_for_is_refused_before_it_is_read(site: RunningSite) -> None:
    """By the length that it states, whoever sends it, with an identity or without one."""
    for headers in (person("ada"), {}):
        connection = HTTPConnection(site.url.removeprefix("http://"), timeout=10)
        connection.putrequest("POST", "/reviews/claim")
        stated = {"Content-Type": "application/json", "Content-Length": str(5 << 20), "Origin": site.url}
        for name, value in {**stated, **headers}.items():
            connection.putheader(name, value)
        connection.endheaders()
        assert connection.getresponse().status == 413
        connection.close()


def test_a_person_whose_first_request_fails_is_served_by_the_next(site: RunningSite) -> None:
    """What the failed request wrote is rolled back, the person's pseudonym too."""
    review = site.open_review()
    assert site.request("POST", "/reviews/claim", person("ada"), {"review": str(uuid4())}).status == 404
    for _ in range(2):
        assert site.request("POST", "/reviews/claim", person("ada")).json["review"] == str(review)


@pytest.mark.parametrize(
    "kind", ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x", ""]
)
def test_a_changing_request_has_a_json_body(site: RunningSite, kind: str) -> None:
    """Those kinds need no permission of the page before a browser sends them to it."""
    reply = site.request("POST", "/reviews/claim", {**person("ada"), "Content-Type": kind}, b"{}")
    assert reply.status == 403


@pytest.mark.parametrize(
    ("groups", "allowed"),
    [
        (("moderator",), {"/items", "/figures", "/preferences", "claim"}),
        (("senior",), {"/items", "/figures", "/preferences", "claim"}),
        (("auditor",), {"/items", "/figures", "/preferences", "/audit"}),
        (("admin",), {"/items", "/figures", "/preferences", "/audit"}),
        (("staff",), set()),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_each_role_reaches_its_own_routes_alone(
    site: RunningSite, groups: tuple[str, ...], allowed: set[str]
) -> None:
    """An auditor reads all and decides nothing, a moderator decides and reads no audit; others get a 403."""
    who = person("ada", *groups)
    answers = {
        path: site.request("GET", path, who).status
        for path in ("/items", "/figures", "/preferences", "/audit")
    }
    answers["claim"] = site.request("POST", "/reviews/claim", who).status
    assert answers == {name: 200 if name in allowed else 403 for name in answers}


def test_groups_of_the_company_stand_for_roles(start_site: StartSite) -> None:
    """A group may stand for several roles, and several groups for one."""
    site = start_site(web_roles=("ts-leads=senior", "ts-leads=auditor", "ts=moderator"))
    assert site.request("GET", "/audit", person("ada", "ts-leads")).status == 200
    assert site.request("POST", "/reviews/claim", person("bob", "x", "ts")).status == 200
    assert site.request("GET", "/items", person("eve", "moderator")).status == 403


def test_every_answer_has_the_security_headers(site: RunningSite) -> None:
    """Pages, problems, files: no script but the page's own, no frame, nothing guessed, nothing kept."""
    for path in ("/", "/no-such-page", "/static/review.js", "/items.json"):
        headers = site.request("GET", path, person("ada")).headers
        policy = headers["Content-Security-Policy"]
        assert "script-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        kept = "immutable" if path.startswith("/static") else "no-store"
        assert kept in headers["Cache-Control"]
        assert "Server" not in headers


def test_text_from_outside_is_escaped(site: RunningSite) -> None:
    """Metadata, keys and reasons of appeals are text, whatever they look like."""
    attack = "<script>alert(1)</script>"
    event = site.verdict("upload-1", metadata={attack: f'"{attack}'})
    review = site.open_review(event)
    page = site.request("GET", f"/reviews/{review}", person("ada")).text
    assert attack not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 2


def test_claims_are_limited_and_the_answer_says_when_the_next_may_come(start_site: StartSite) -> None:
    """One person's limit is not another's."""
    site = start_site(web_claims_per_minute=3)
    replies = [site.request("POST", "/reviews/claim", person("ada")) for _ in range(4)]
    assert [reply.status for reply in replies] == [200, 200, 200, 429]
    assert 1 <= int(replies[-1].headers["Retry-After"]) <= 20
    assert site.request("POST", "/reviews/claim", person("bob")).status == 200


def test_the_application_cannot_change_the_audit(site: RunningSite) -> None:
    """PostgreSQL refuses UPDATE, DELETE and TRUNCATE to the service's role."""
    site.open_review()
    site.request("POST", "/reviews/claim", person("ada"))
    for command in ("UPDATE audit SET actor = 'nobody'", "DELETE FROM audit", "TRUNCATE audit"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege), site.database.transaction() as tx:
            tx.execute(command)
    assert site.value("SELECT count(*) FROM audit WHERE action = 'review_claimed'") == 1


def test_events_name_people_by_pseudonym_alone(site: RunningSite) -> None:
    """Neither id nor name of the person is in the event of a decision."""
    review = site.open_review()
    who = {**person("zoe@example.org"), "X-Forwarded-Preferred-Username": "Zoe Quick"}
    site.request("POST", "/reviews/claim", who)
    lease = site.value("SELECT lease FROM reviews")
    body = {"lease": str(lease), "outcome": "real"}
    assert site.request("POST", f"/reviews/{review}/decide", who, body).status == 200
    (event,) = site.outbox()
    assert "zoe" not in json.dumps(event).lower()
    assert event["data"]["moderator"] == str(site.value("SELECT id FROM moderators"))


def test_a_token_is_believed_if_its_issuer_signed_it_for_this_page_and_it_is_current(
    start_site: StartSite, tmp_path: Path
) -> None:
    """Another key, issuer or audience, an old token and algorithms without a private key are refused."""
    key, other = (ECKey.generate_key("P-256", {"kid": name}) for name in ("k1", "k1"))
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps(KeySet([key]).as_dict(private=False)))
    site = start_site(
        web_trusted_proxies=(), web_jwt_keys=str(keys), web_jwt_issuer=ISSUER, web_jwt_audience=AUDIENCE
    )
    now = int(time.time())
    good = {"iss": ISSUER, "aud": [AUDIENCE], "sub": "u-1", "exp": now + 60, "groups": ["moderator"]}

    def status(claims: dict[str, Any], signed_by: Any = key, **header: str) -> int:
        token = jwt.encode({"alg": "ES256", "kid": "k1", **header}, claims, signed_by)
        return site.request("GET", "/items", {"Authorization": f"Bearer {token}"}).status

    assert status(good) == 200
    assert status({**good, "groups": []}) == 403
    for wrong in (
        {**good, "iss": "https://evil.example"},
        {**good, "aud": "another"},
        {**good, "exp": now - 3600},
        {**good, "nbf": now + 3600},
        {name: value for name, value in good.items() if name != "exp"},
        {name: value for name, value in good.items() if name != "sub"},
    ):
        assert status(wrong) == 401
    assert status(good, other) == 401
    secret = OctKey.import_key(keys.read_bytes(), {"kid": "k1"})
    assert status(good, secret, alg="HS256") == 401
    unsigned = "eyJhbGciOiJub25lIn0." + jwt.encode({"alg": "ES256"}, good, key).split(".")[1] + "."
    assert site.request("GET", "/items", {"Authorization": f"Bearer {unsigned}"}).status == 401
    # Beside a token the headers of a proxy say nothing.
    assert site.request("GET", "/items", person("boss", "admin")).status == 401


def test_a_key_that_the_issuer_adds_is_read_when_a_token_names_it(
    start_site: StartSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys are exchanged without a restart."""
    monkeypatch.setattr("worker.web.identity._KEYS_RETRY_SECONDS", 0.0)
    old, new = (ECKey.generate_key("P-256", {"kid": name}) for name in ("old", "new"))
    keys = tmp_path / "keys.json"
    site = start_site(
        web_trusted_proxies=(), web_jwt_keys=str(keys), web_jwt_issuer=ISSUER, web_jwt_audience=AUDIENCE
    )
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "u-1",
        "exp": int(time.time()) + 60,
        "groups": "moderator",
    }
    for key in (old, new):
        keys.write_text(json.dumps(KeySet([key]).as_dict(private=False)))
        token = jwt.encode({"alg": "ES256", "kid": str(key.kid)}, claims, key)
        assert site.request("GET", "/items", {"Authorization": f"Bearer {token}"}).status == 200


def test_a_one_time_link_lets_one_browser_in_on_this_machine(start_site: StartSite) -> None:
    """The link works once, no script or other site has its cookie, and another host name is refused."""
    links = OneTimeLinks()
    secret = links.create("moderator")
    site = start_site(links=links)
    assert site.request("GET", "/").status == 401
    assert site.request("GET", f"/link?secret={uuid4()}").status == 403
    opened = site.request("GET", f"/link?secret={secret}")
    cookie = opened.headers["Set-Cookie"]
    assert (opened.status, opened.headers["Location"]) == (303, "/")
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    session = {"Cookie": cookie.partition(";")[0]}
    assert site.request("GET", "/items", session).status == 200
    assert site.request("GET", "/audit", session).status == 403
    assert site.request("POST", "/reviews/claim", session).status == 200
    assert site.request("GET", f"/link?secret={secret}").status == 403
    # Neither a proxy's header nor a name that resolves to this machine gets in.
    assert site.request("GET", "/items", person("boss", "admin")).status == 401
    assert site.request("GET", "/items", {**session, "Host": "evil.example"}).status == 403
