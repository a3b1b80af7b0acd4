"""Endpoints of webhooks over HTTP, and a verdict on its way to one."""

from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests.served_page import Caller, bearer, served, token
from tests.verdicts import verdict_event
from tests.webhook_receiver import Receiver, wait_until
from worker.database.database import Database
from worker.relay.loops import Loop
from worker.settings import Settings
from worker.webhooks import deliveries
from worker.webhooks.sender import Sender

TYPES = {"event_types": ["image.verdict.v1"]}


@pytest.fixture(scope="module")
def inside(api_settings: Settings) -> Settings:
    """Return settings with which webhooks reach this machine."""
    return api_settings.model_copy(update={"webhook_networks": ("127.0.0.0/8",)})


@pytest.fixture(scope="module")
def manager(inside: Settings, module_database: Database) -> Iterator[Caller]:
    """Provide a caller who manages endpoints."""
    with served(inside, module_database) as port:
        yield Caller(port, bearer(token(module_database, "webhooks")))


def test_an_endpoint_is_made_changed_rotated_and_deleted(manager: Caller, module_database: Database) -> None:
    """Its secret is shown when it is made and at each rotation; the audit has every step."""
    with Receiver() as receiver:
        made = manager.post("/v1/webhooks", {"url": receiver.url, "description": "test", **TYPES})
        assert made.status == 201
        secret, path = made.json.pop("secret"), f"/v1/webhooks/{made.json['id']}"
        assert secret.startswith("whsec_")
        listed = manager.get("/v1/webhooks").json
        shown = {name: value for name, value in made.json.items() if name != "secret"}
        assert shown in listed
        assert manager.get(path).json == shown
        changed = manager.call("PATCH", path, {"event_types": ["image.decision.v1"], "active": False})
        assert (changed.json["state"], changed.json["disabled_reason"]) == ("disabled", "by_request")
        assert changed.json["url"] == receiver.url
        assert manager.call("PATCH", path, {"active": True}).json["disabled_reason"] is None
        rotated = manager.post(f"{path}/rotate", {"overlap_seconds": 60})
        assert rotated.json["secret"] != secret
        assert rotated.json["old_secret_until"] is not None
        assert manager.call("DELETE", path).status == 204
    for method, below in [
        ("GET", ""),
        ("PATCH", ""),
        ("DELETE", ""),
        ("POST", "/rotate"),
        ("GET", "/deliveries"),
    ]:
        reply = manager.call(method, f"{path}{below}", None if method in {"GET", "DELETE"} else {})
        assert (reply.status, reply.reason) == (404, "not_found")
    with module_database.transaction() as tx:
        rows = tx.execute("SELECT action FROM audit WHERE subject = %s ORDER BY id", [made.json["id"]])
        assert [row["action"] for row in rows] == [
            "webhook_created",
            "webhook_changed",
            "webhook_changed",
            "webhook_rotated",
            "webhook_deleted",
        ]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"url": "https://169.254.169.254/", **TYPES}, "address_refused"),
        ({"url": "https://[::ffff:10.0.0.1]/", **TYPES}, "address_refused"),
        ({"url": "http://93.184.216.34/", **TYPES}, "not_https"),
        ({"url": "file:///etc/passwd", **TYPES}, "malformed"),
        ({"url": "https://a.invalid/", **TYPES}, "unresolved"),
        ({"url": "https://93.184.216.34/", "event_types": []}, "invalid_request"),
        ({"url": "https://93.184.216.34/", "event_types": ["image.unknown.v1"]}, "invalid_request"),
    ],
)
def test_an_endpoint_that_could_not_be_sent_to_is_refused(
    manager: Caller, body: dict[str, object], reason: str
) -> None:
    """When it is made, and when its URL is changed."""
    reply = manager.post("/v1/webhooks", body)
    assert (reply.status, reply.reason) == (422, reason)


def test_an_event_is_delivered_listed_and_replayed(
    manager: Caller, inside: Settings, module_database: Database
) -> None:
    """One by its id, or all since a time, not both and not neither."""
    event = verdict_event()
    with Receiver([(500, {}), (200, {})]) as receiver:
        made = manager.post("/v1/webhooks", {"url": receiver.url, **TYPES}).json
        path = f"/v1/webhooks/{made['id']}"
        with module_database.transaction() as tx:
            deliveries.enqueue(tx, event.id, event.type, event.model_dump_json())
        with (
            Sender(inside.webhooks, module_database, retry_delays=(0.01,)) as sender,
            Loop("webhooks", sender.turn),
        ):
            wait_until(lambda: manager.get(f"{path}/deliveries?state=delivered").json != [])
            (delivered,) = manager.get(f"{path}/deliveries").json
            assert (delivered["event_id"], delivered["attempts"], delivered["status"]) == (event.id, 2, 200)
            assert manager.post(f"{path}/replay", {"event_id": event.id}).json == {"events": 1}
            wait_until(lambda: len(receiver.received) == 3)
            assert manager.post(f"{path}/replay", {"since": "2026-01-01T00:00:00Z"}).json == {"events": 1}
            wait_until(lambda: len(receiver.received) == 4)
    assert {request.headers["webhook-id"] for request in receiver.received} == {event.id}
    assert receiver.received[-1].verified(made["secret"])["id"] == event.id
    for wrong in ({}, {"event_id": "a", "since": "2026-01-01T00:00:00Z"}, {"since": "yesterday"}):
        assert manager.post(f"{path}/replay", wrong).status == 422
    assert manager.post(f"{path}/replay", {"event_id": str(uuid4())}).json == {"events": 0}
    manager.call("DELETE", path)
