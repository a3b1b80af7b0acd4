"""Who may call the API: tokens with scopes, people with roles."""

import json
from uuid import uuid4

import pytest
import redis
from click.testing import CliRunner

from tests.conftest import settings_of
from tests.integration.api.conftest import CallerWith
from tests.served_page import Caller, bearer, served, token
from tests.verdicts import verdict_event
from worker.broker.verdict_stream import VerdictStream
from worker.cli import main
from worker.database.database import Database
from worker.database.tokens import SCOPES
from worker.settings import Settings

CALLS = {
    "checks:write": ("POST", "/v1/checks/batch"),
    "checks:read": ("GET", "/v1/checks/unknown"),
    "appeals": ("POST", "/v1/checks/unknown/appeals"),
    "intake": ("POST", "/v1/intake/s3"),
    "webhooks": ("GET", "/v1/webhooks"),
}


def as_person(port: int, *groups: str) -> Caller:
    """Return a caller whom the trusted proxy names, with these groups."""
    return Caller(
        port,
        {
            "X-Forwarded-User": f"person-{'-'.join(groups)}",
            "X-Forwarded-Groups": ",".join(groups),
            "Origin": f"http://127.0.0.1:{port}",
        },
    )


@pytest.mark.parametrize("scope", SCOPES)
def test_a_token_opens_what_its_scope_says_and_nothing_else(caller_with: CallerWith, scope: str) -> None:
    """Each scope has its calls; the answer to others names the scope that is missing."""
    own = caller_with(scope)
    for needed, (method, path) in CALLS.items():
        reply = own.call(method, path, None if method == "GET" else {})
        if needed == scope:
            assert reply.status not in {401, 403}
        else:
            assert (reply.status, reply.reason) == (403, "scope_missing")


@pytest.mark.parametrize("text", ["dnf_0_unknown", "dnf_", "dnf_" + "x" * 5000])
def test_an_unknown_token_is_refused(port: int, text: str) -> None:
    """With the header that HTTP asks for."""
    reply = Caller(port, bearer(text)).get("/v1/webhooks")
    assert (reply.status, reply.reason) == (401, "token_refused")
    assert reply.headers["www-authenticate"] == "Bearer"


def test_without_a_token_or_a_person_nothing_is_open(
    port: int, api_settings: Settings, module_database: Database
) -> None:
    """A forged proxy header from an address that is not trusted neither."""
    untrusted = api_settings.model_copy(update={"web_trusted_proxies": ("192.0.2.1",)})
    with served(untrusted, module_database) as other:
        for caller in (
            Caller(port, {}),
            as_person(other, "admin"),
            Caller(port, {"Authorization": "Basic eDp5"}),
        ):
            for method, path in CALLS.values():
                reply = caller.call(method, path, None if method == "GET" else {})
                assert reply.status in {401, 403}, (method, path)


def test_people_manage_webhooks_and_tokens_by_the_role_admin_alone(port: int) -> None:
    """A moderator, a senior and an auditor are refused; only the auditor reads checks: audits are blind."""
    for group in ("moderator", "senior", "auditor"):
        person = as_person(port, group)
        for method, path in (("GET", "/v1/tokens"), ("POST", "/v1/tokens"), ("GET", "/v1/webhooks")):
            body = None if method == "GET" else {"name": "a", "scopes": ["intake"]}
            assert (reply := person.call(method, path, body)).status == 403
            assert reply.reason == "not_allowed"
        assert person.get("/v1/checks/unknown").status == (404 if group == "auditor" else 403)
        assert person.get("/v1/checks/unknown/thumbnail").status == (404 if group == "auditor" else 403)
    assert as_person(port, "admin").get("/v1/tokens").status == 200


def test_another_site_cannot_use_a_persons_identity(port: int) -> None:
    """A cross-site POST is refused before it is read, and a form is no JSON."""
    admin = as_person(port, "admin")
    body = {"name": "a", "scopes": ["intake"]}
    evil = admin.post("/v1/tokens", body, headers={"Origin": "https://evil.example"})
    assert (evil.status, evil.reason) == (403, "cross_site")
    form = admin.post(
        "/v1/tokens", raw=b"name=a", headers={"Content-Type": "application/x-www-form-urlencoded"}
    )
    assert form.status == 403


def test_an_admin_makes_a_token_that_works_until_it_is_revoked(
    port: int, caller: Caller, module_database: Database
) -> None:
    """Its text is shown once and is nowhere in the database; no token makes tokens."""
    admin = as_person(port, "admin")
    made = admin.post("/v1/tokens", {"name": "platform", "scopes": ["webhooks"]})
    assert made.status == 201
    text = made.json["token"]
    listed = {each["id"]: each for each in admin.get("/v1/tokens").json}
    assert listed[made.json["id"]]["scopes"] == ["webhooks"]
    assert "token" not in listed[made.json["id"]]
    with module_database.transaction() as tx:
        rows = json.dumps(tx.execute("SELECT * FROM api_tokens").fetchall(), default=str)
        audited = tx.execute("SELECT action FROM audit WHERE subject = %s", [made.json["id"]]).fetchall()
    assert text not in rows
    assert text[len("dnf_00000000_") :] not in rows
    assert [row["action"] for row in audited] == ["token_created"]
    assert caller.get("/v1/tokens").reason == "not_allowed"
    assert admin.call("DELETE", f"/v1/tokens/{made.json['id']}").status == 204
    assert admin.call("DELETE", f"/v1/tokens/{made.json['id']}").status == 404
    # Not used before, so no process remembers it.
    assert Caller(port, bearer(text)).get("/v1/webhooks").reason == "token_refused"


def test_a_token_expires(port: int, module_database: Database) -> None:
    """At its time."""
    text = token(module_database, "webhooks")
    with module_database.transaction() as tx:
        tx.execute(
            "UPDATE api_tokens SET expires_at = now() - interval '1 second' WHERE id = %s",
            [text.split("_")[1]],
        )
    assert Caller(port, bearer(text)).get("/v1/webhooks").reason == "token_refused"


def test_a_token_has_a_rate(api_settings: Settings, module_database: Database) -> None:
    """Beyond it a call is refused with the time of the next."""
    slow = api_settings.model_copy(update={"web_requests_per_minute": 3})
    with served(slow, module_database) as port:
        caller = Caller(port, bearer(token(module_database)))
        replies = [caller.get("/v1/webhooks") for _ in range(4)]
        assert [reply.status for reply in replies] == [200, 200, 200, 429]
        assert replies[3].reason == "too_many_requests"
        assert int(replies[3].headers["retry-after"]) > 0
        assert Caller(port, bearer(token(module_database))).get("/v1/webhooks").status == 200


def test_the_command_line_makes_lists_and_revokes_tokens(
    database_environment: dict[str, str], api_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first token of an installation comes from here."""
    for name, value in database_environment.items():
        monkeypatch.setenv(name, value)
    made = CliRunner().invoke(main, ["tokens", "create", "shop", "--scope", "webhooks", "--days", "30"])
    assert made.exit_code == 0, made.output
    text = made.output.strip()
    listed = CliRunner().invoke(main, ["tokens", "list", "--json"])
    (only,) = [json.loads(line) for line in listed.output.splitlines()]
    assert (only["name"], only["scopes"], only["revoked_at"]) == ("shop", ["webhooks"], None)
    with Database.open(settings_of(database_environment).database) as database:
        with served(api_settings, database) as port:
            assert Caller(port, bearer(text)).get("/v1/webhooks").status == 200
        revoked = CliRunner().invoke(main, ["tokens", "revoke", only["id"]])
        assert revoked.exit_code == 0, revoked.output
        with served(api_settings, database) as port:
            assert Caller(port, bearer(text)).get("/v1/webhooks").status == 401
    assert "revoked" in CliRunner().invoke(main, ["tokens", "list"]).output
    unknown = CliRunner().invoke(main, ["tokens", "revoke", str(uuid4())])
    assert unknown.exit_code == 1


def test_submissions_and_verdicts_need_no_database(
    database_environment: dict[str, str], api_settings: Settings, module_broker: redis.Redis
) -> None:
    """With a token that was used before; whether people decided is not said, and unknown checks are a 503."""
    event = verdict_event("without-database")
    VerdictStream.connect(api_settings, client=module_broker).publish(event, message_id="m")
    with Database.open(settings_of(database_environment).database) as database:
        caller_token = bearer(token(database))
        with served(api_settings, database) as port:
            caller = Caller(port, caller_token)
            assert caller.get("/v1/checks/without-database").json["decision"] is None
            database.close()
            body = {"check_id": "while-away", "bucket": "test-uploads", "key": "a.jpg"}
            assert caller.post("/v1/checks", body).status == 202
            assert caller.get("/v1/checks/while-away").json["state"] == "queued"
            found = caller.get("/v1/checks/without-database").json
            assert found["event"] == event.model_dump(mode="json")
            assert "decision" not in found
            for path in ("/v1/checks/unknown", "/v1/webhooks"):
                assert caller.get(path).reason == "database_unavailable"
            assert Caller(port, bearer("dnf_0_other")).get("/v1/webhooks").status == 503
