"""Deliveries of events to endpoints: retries, rotation, replay, disabling."""

import json
import threading
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from standardwebhooks import WebhookVerificationError

from tests.integration.webhooks.conftest import AddEndpoint, Sending
from tests.verdicts import verdict_event
from tests.webhook_receiver import Receiver, wait_until
from worker.contract.messages import EndpointDisabledEvent, VerdictEvent, read_event
from worker.database.database import Database
from worker.settings import Settings
from worker.telemetry.relay_metrics import RELAY
from worker.webhooks import deliveries, endpoints
from worker.webhooks.deliveries import Delivery
from worker.webhooks.endpoints import EVENT_TYPES
from worker.webhooks.sender import RETRY_DELAYS, Sender


def published(database: Database, event: VerdictEvent | None = None) -> VerdictEvent:
    """Enqueue an event, as the relay does, and return it."""
    event = event or verdict_event()
    with database.transaction() as tx:
        deliveries.enqueue(tx, event.id, event.type, event.model_dump_json())
    return event


def delivery(database: Database, endpoint_id: UUID) -> Delivery:
    """Return an endpoint's only delivery."""
    with database.transaction() as tx:
        (found,) = deliveries.deliveries(tx, endpoint_id)
    return found


def test_an_event_is_retried_until_it_is_accepted_signed_anew_each_time_under_one_id(
    database: Database, add_endpoint: AddEndpoint, sending: Sending
) -> None:
    """500, 429 with a time, 302, then 200: a redirect is a failure and is not followed."""
    with (
        Receiver() as elsewhere,
        Receiver(
            [(500, {}), (429, {"retry-after": "1"}), (302, {"location": elsewhere.url}), (200, {})]
        ) as receiver,
    ):
        endpoint_id, secret = add_endpoint(receiver.url)
        event = published(database)
        with sending():
            wait_until(lambda: delivery(database, endpoint_id).state == "delivered")
    assert len(receiver.received) == 4
    assert {request.headers["webhook-id"] for request in receiver.received} == {event.id}
    for request in receiver.received:
        assert request.headers["content-type"] == "application/cloudevents+json"
        read = read_event(json.dumps(request.verified(secret)))
        assert isinstance(read, VerdictEvent)
        assert read.data.check_id == event.data.check_id
        assert read.data.thumbnail.url == (
            f"https://review.example.org/v1/checks/{event.data.check_id}/thumbnail"
        )
    assert elsewhere.connections == 0
    found = delivery(database, endpoint_id)
    assert (found.attempts, found.status, found.failure) == (4, 200, None)


def test_nothing_is_sent_before_the_time_that_the_receiver_asked_for(
    database: Database, add_endpoint: AddEndpoint, sending: Sending
) -> None:
    """Not another event either: the pause is the endpoint's."""
    with Receiver([(503, {"retry-after": "600"})]) as receiver:
        endpoint_id, _ = add_endpoint(receiver.url)
        published(database)
        with sending():
            wait_until(lambda: delivery(database, endpoint_id).failure == "refused")
            published(database)
            with database.transaction() as tx:
                assert deliveries.claim(tx, limit=10, for_each_endpoint=10) == []
                first = next(found for found in deliveries.deliveries(tx, endpoint_id) if found.attempts)
    assert len(receiver.received) == 1
    assert first.next_attempt_at is not None
    assert first.next_attempt_at > datetime.now(UTC) + timedelta(seconds=550)


def test_the_attempts_reach_over_three_days() -> None:
    """With the longest variation they stay below four."""
    assert 71 * 3600 < sum(RETRY_DELAYS) < 74 * 3600


def test_an_event_that_nobody_accepts_is_given_up_and_can_be_replayed(
    database: Database, add_endpoint: AddEndpoint, sending: Sending
) -> None:
    """After the last attempt it is failed; one replay delivers it."""
    with Receiver([(500, {}), (500, {}), (500, {}), (200, {})]) as receiver:
        endpoint_id, _ = add_endpoint(receiver.url)
        event = published(database)
        with sending((0.01, 0.01)):
            wait_until(lambda: delivery(database, endpoint_id).state == "failed")
            assert len(receiver.received) == 3
            with database.transaction() as tx:
                assert deliveries.replay(tx, endpoint_id, by="tests", event_id=event.id) == 1
            wait_until(lambda: delivery(database, endpoint_id).state == "delivered")
    assert {request.headers["webhook-id"] for request in receiver.received} == {event.id}


def test_an_endpoint_has_the_events_of_its_types_since_a_time_again(
    database: Database, add_endpoint: AddEndpoint, sending: Sending
) -> None:
    """What it never had, because it was disabled, is among them; other types are not."""
    with Receiver() as receiver:
        endpoint_id, _ = add_endpoint(receiver.url)
        add_endpoint(receiver.url, "image.decision.v1")
        with database.transaction() as tx:
            endpoints.change(tx, endpoint_id, by="tests", active=False)
        events = [published(database) for _ in range(3)]
        with database.transaction() as tx:
            deliveries.enqueue(tx, "d-1", "image.decision.v1", "{}")
            deliveries.enqueue(tx, "d-1", "image.decision.v1", "{}")
            endpoints.change(tx, endpoint_id, by="tests", active=True)
            since = datetime.now(UTC) - timedelta(minutes=1)
            assert deliveries.replay(tx, endpoint_id, by="tests", since=since) == 3
        with sending():
            wait_until(lambda: len(receiver.received) >= 4)
    ids = [request.headers["webhook-id"] for request in receiver.received]
    assert sorted(ids) == sorted(["d-1", *(event.id for event in events)])


def test_an_event_is_delivered_once_however_often_it_is_enqueued(
    database: Database, add_endpoint: AddEndpoint, sending: Sending
) -> None:
    """The relay may see it again; two senders share the work."""
    with Receiver() as receiver:
        endpoint_id, _ = add_endpoint(receiver.url)
        event = published(database)
        with sending(), sending():
            wait_until(lambda: delivery(database, endpoint_id).state == "delivered")
            published(database, event)
            others = [published(database) for _ in range(20)]
            wait_until(lambda: len(receiver.received) >= 21)
    ids = [request.headers["webhook-id"] for request in receiver.received]
    assert sorted(ids) == sorted([event.id, *(other.id for other in others)])


def test_both_secrets_sign_during_a_rotation_and_the_old_one_no_longer_after_it(
    database: Database, add_endpoint: AddEndpoint, sending: Sending
) -> None:
    """A receiver changes its secret at any time in between."""
    with Receiver() as receiver:
        endpoint_id, old = add_endpoint(receiver.url)
        with database.transaction() as tx:
            rotated, new = endpoints.rotate(tx, endpoint_id, by="tests", overlap_seconds=3600)
        assert rotated.old_secret_until is not None
        published(database)
        with sending():
            wait_until(lambda: len(receiver.received) == 1)
            with database.transaction() as tx:
                _, newest = endpoints.rotate(tx, endpoint_id, by="tests", overlap_seconds=0)
            published(database)
            wait_until(lambda: len(receiver.received) == 2)
    first, second = receiver.received
    assert first.verified(old) == first.verified(new)
    second.verified(newest)
    for secret in (old, new):
        with pytest.raises(WebhookVerificationError):
            second.verified(secret)


def test_410_disables_an_endpoint_at_once(
    database: Database, add_endpoint: AddEndpoint, sending: Sending
) -> None:
    """The other endpoints have an event about it, the audit a row, the metric counts it."""
    with Receiver([(410, {})]) as gone, Receiver() as other:
        endpoint_id, _ = add_endpoint(gone.url)
        _, secret = add_endpoint(other.url, "webhook.endpoint_disabled.v1")
        published(database)
        with sending():
            wait_until(lambda: len(other.received) == 1)
            published(database)
            wait_until(lambda: not running_attempts(database))
    assert len(gone.received) == 1
    told = EndpointDisabledEvent.model_validate(other.received[0].verified(secret))
    assert (told.data.endpoint, told.data.reason) == (str(endpoint_id), "gone")
    with database.transaction() as tx:
        assert endpoints.endpoint(tx, endpoint_id).disabled_reason == "gone"
        row = tx.execute("SELECT detail FROM audit WHERE action = 'webhook_disabled'").fetchone()
    assert row is not None
    assert row["detail"] == {"reason": "gone"}
    assert RELAY.registry.get_sample_value("dnf_webhook_endpoints_disabled", {"reason": "gone"}) == 1
    assert RELAY.registry.get_sample_value("dnf_webhook_endpoints_disabled", {"reason": "failing"}) == 0


def running_attempts(database: Database) -> list[Any]:
    """Return what is due."""
    with database.transaction() as tx:
        return deliveries.claim(tx, limit=1, for_each_endpoint=1)


def test_five_days_of_failures_disable_an_endpoint_and_one_acceptance_ends_them(
    database: Database, add_endpoint: AddEndpoint, sending: Sending
) -> None:
    """The days are counted from the first failure after the last acceptance."""
    with Receiver([(500, {}), (200, {}), (500, {})]) as receiver:
        endpoint_id, _ = add_endpoint(receiver.url)
        published(database)
        with sending():
            wait_until(lambda: delivery(database, endpoint_id).state == "delivered")
            with database.transaction() as tx:
                assert endpoints.endpoint(tx, endpoint_id).failing_since is None
                tx.execute("UPDATE webhook_endpoints SET failing_since = now() - interval '5 days'")
            published(database)
            wait_until(lambda: endpoint_state(database, endpoint_id) == "disabled")
    with database.transaction() as tx:
        assert endpoints.endpoint(tx, endpoint_id).disabled_reason == "failing"
        revived = endpoints.change(tx, endpoint_id, by="tests", active=True)
    assert (revived.state, revived.failing_since, revived.disabled_reason) == ("active", None, None)


def endpoint_state(database: Database, endpoint_id: UUID) -> str:
    """Return whether an endpoint is active."""
    with database.transaction() as tx:
        return endpoints.endpoint(tx, endpoint_id).state


def test_a_receiver_that_hangs_delays_no_other(
    database: Database, add_endpoint: AddEndpoint, sending: Sending
) -> None:
    """Twenty events wait for it, and one for another receiver arrives while they do."""
    released = threading.Event()
    with Receiver(before_answer=lambda: released.wait(30) and None) as hanging, Receiver() as other:
        hanging_id, _ = add_endpoint(hanging.url)
        for _ in range(20):
            published(database)
        with sending():
            try:
                wait_until(lambda: len(hanging.received) == 4)
                add_endpoint(other.url)
                published(database)
                wait_until(lambda: len(other.received) == 1)
                assert len(hanging.received) == 4
            finally:
                released.set()
            wait_until(lambda: endpoint_delivered(database, hanging_id) == 21)


def endpoint_delivered(database: Database, endpoint_id: UUID) -> int:
    """Return how many events an endpoint has accepted."""
    with database.transaction() as tx:
        return len(deliveries.deliveries(tx, endpoint_id, state="delivered"))


def test_an_attempt_whose_process_ended_is_made_again_after_its_lease(
    database: Database, add_endpoint: AddEndpoint
) -> None:
    """Until then nobody else makes it; its late report changes nothing."""
    add_endpoint("https://receiver.example/")
    published(database)
    with database.transaction() as tx:
        (first,) = deliveries.claim(tx, limit=10, for_each_endpoint=10)
        assert deliveries.claim(tx, limit=10, for_each_endpoint=10) == []
        tx.execute("UPDATE webhook_deliveries SET next_attempt_at = now()")
        (second,) = deliveries.claim(tx, limit=10, for_each_endpoint=10)
        assert (first.number, second.number) == (1, 2)
        deliveries.failed(tx, first, "refused", next_in_seconds=None)
        assert [found.state for found in deliveries.deliveries(tx, first.endpoint_id)] == ["pending"]
        deliveries.accepted(tx, second, 200)
        assert [found.state for found in deliveries.deliveries(tx, first.endpoint_id)] == ["delivered"]


def test_an_endpoint_whose_host_is_private_by_now_gets_no_connection(
    database: Database, add_endpoint: AddEndpoint
) -> None:
    """Its address is checked at every attempt: the metadata service, and this machine in a mapped form."""
    with Receiver() as receiver:
        for url in (
            "http://169.254.169.254/latest/meta-data",
            f"https://[::ffff:127.0.0.1]:{receiver.port}/",
            f"https://localhost:{receiver.port}/",
        ):
            endpoint_id, _ = add_endpoint(url)
            published(database)
            with Sender(Settings().webhooks, database) as sender:
                sender.turn()
            assert delivery(database, endpoint_id).failure in {"address_refused", "not_https"}
            with database.transaction() as tx:
                endpoints.delete(tx, endpoint_id, by="tests")
    assert receiver.connections == 0


def test_old_events_are_forgotten_unless_an_active_endpoint_waits_for_them(
    database: Database, add_endpoint: AddEndpoint
) -> None:
    """A disabled endpoint keeps none for ever."""
    waiting_id, _ = add_endpoint("https://waiting.example/")
    published(database)
    with database.transaction() as tx:
        tx.execute("UPDATE webhook_events SET at = now() - interval '15 days'")
        assert deliveries.forget(tx, older_than_seconds=14 * 86_400) == 0
        endpoints.change(tx, waiting_id, by="tests", active=False)
        assert deliveries.forget(tx, older_than_seconds=14 * 86_400) == 1
        assert deliveries.deliveries(tx, waiting_id) == []


def test_without_an_endpoint_no_event_is_kept(database: Database) -> None:
    """Whoever uses no webhooks pays nothing for them."""
    published(database)
    with database.transaction() as tx:
        assert tx.execute("SELECT 1 FROM webhook_events").fetchone() is None
    assert "image.verdict.v1" in EVENT_TYPES
