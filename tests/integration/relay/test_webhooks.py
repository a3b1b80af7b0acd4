"""From the verdict stream through a relay process to a platform's endpoint."""

import json

import redis

from tests.deciding import take_decision
from tests.relay_process import RelayProcess
from tests.verdicts import rejection_event, verdict_event
from tests.webhook_receiver import Receiver, wait_until
from worker.broker.verdict_stream import VerdictStream
from worker.contract.messages import read_decision, read_event
from worker.database.database import Database
from worker.settings import Settings
from worker.webhooks import endpoints


def test_a_relay_delivers_each_event_once_to_who_subscribes_to_its_type(
    relay: RelayProcess,
    broker: redis.Redis,
    verdicts: VerdictStream,
    database: Database,
    relay_settings: Settings,
) -> None:
    """A verdict, a rejection and a decision, as published; also after the relay was killed."""
    del broker
    relay.environment["DNF_WEBHOOK_NETWORKS"] = "127.0.0.0/8"
    with Receiver() as everything, Receiver() as decisions:
        subscriptions: list[tuple[Receiver, list[endpoints.EventType]]] = [
            (everything, ["image.verdict.v1", "image.rejected.v1", "image.decision.v1"]),
            (decisions, ["image.decision.v1"]),
        ]
        secrets = {}
        for receiver, types in subscriptions:
            with database.transaction() as tx:
                _, secrets[receiver] = endpoints.create(tx, receiver.url, types, by="tests")
        relay.start()
        relay.wait_for_event("relay_ready")
        verdict, rejection = verdict_event(score=0.1), rejection_event()
        verdicts.publish(verdict, message_id="1")
        verdicts.publish(rejection, message_id="2")
        wait_until(lambda: len(everything.received) == 2)
        relay.kill()
        relay.start()
        decided = take_decision(database, relay_settings.review)
        wait_until(lambda: len(everything.received) == 3 and len(decisions.received) == 1)
        relay.stop()
    bodies = [request.verified(secrets[everything]) for request in everything.received]
    assert {body["id"] for body in bodies} == {verdict.id, rejection.id, str(decided.id)}
    events = {body["type"]: json.dumps(body) for body in bodies}
    assert read_event(events["image.verdict.v1"]) == verdict
    assert read_event(events["image.rejected.v1"]) == rejection
    assert read_decision(events["image.decision.v1"]).data.outcome == "real"
    assert decisions.received[0].verified(secrets[decisions])["id"] == str(decided.id)
