"""What the API says of checks, with a worker behind it: states, events, thumbnails, appeals."""

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
import redis

from tests.conftest import NULL_WORKER, MakePicture, RunningWorker, StartWorker, StoreObject
from tests.integration.api.conftest import CallerWith
from tests.served_page import Caller, multipart
from tests.webhook_receiver import wait_until
from worker.broker.dead_letters import DeadLetters, dead_letter_of_check
from worker.client import Client
from worker.contract.messages import InvalidMessageError, read_decision, read_event
from worker.database.database import Database
from worker.reviews.decisions import decide
from worker.reviews.moderators import enrol
from worker.reviews.queue import Claimed, claim
from worker.settings import Settings


@pytest.fixture(scope="module")
def worker(worker_process: StartWorker) -> RunningWorker:
    return worker_process({"NULL_SUPERVISED": ""}, module=NULL_WORKER)


@pytest.fixture(scope="module")
def judged(
    worker: RunningWorker, caller: Caller, make_picture: MakePicture, store_object: StoreObject
) -> Callable[[], str]:
    """Provide a function that returns the id of a check that has its verdict."""
    assert worker.process.poll() is None
    store_object("judged.jpg", make_picture(seed=3))

    def new() -> str:
        body = {"check_id": str(uuid4()), "bucket": "test-uploads", "key": "judged.jpg"}
        assert caller.post("/v1/checks", body).status == 202
        reply = caller.get(f"/v1/checks/{body['check_id']}?wait=30")
        assert reply.json["state"] == "answered", reply.body
        return body["check_id"]

    return new


def test_a_check_is_answered_by_a_long_poll_as_soon_as_it_has_its_event(
    caller: Caller, judged: Callable[[], str], client: Client
) -> None:
    """With the event as published; asked again, at once."""
    check_id = judged()
    (event,) = client.wait_for(check_id).values()
    reply = caller.get(f"/v1/checks/{check_id}")
    assert reply.json == {
        "check_id": check_id,
        "state": "answered",
        "event": read_event(event.raw).model_dump(mode="json"),
        "decision": None,
    }


def test_a_long_poll_ends_in_its_time_without_an_event(caller: Caller) -> None:
    """An unknown check is then unknown; the wait has a limit."""
    started = time.monotonic()
    assert caller.get("/v1/checks/unknown?wait=0.5").reason == "not_found"
    assert time.monotonic() - started >= 0.5
    assert caller.get("/v1/checks/unknown?wait=61").status == 422
    assert caller.get("/v1/checks/unknown").status == 404


@pytest.mark.usefixtures("worker")
def test_a_rejected_upload_is_an_answer_too(caller: Caller) -> None:
    """The event says why."""
    body = {"check_id": str(uuid4()), "bucket": "test-uploads", "key": "no-such.jpg"}
    caller.post("/v1/checks", body)
    reply = caller.get(f"/v1/checks/{body['check_id']}?wait=30")
    assert reply.json["event"]["data"]["reason"] == "missing"
    assert caller.get(f"/v1/checks/{body['check_id']}/thumbnail").reason == "no_thumbnail"


def test_a_dead_lettered_check_says_why_until_it_is_redriven(
    caller: Caller, settings: Settings, module_broker: redis.Redis
) -> None:
    """A long poll that waits hears of it; after the redrive it waits again."""
    dead_letters = DeadLetters.connect(settings, client=module_broker)
    check_id = str(uuid4())
    invalid = InvalidMessageError("unknown_policy", "There is no policy x.", check_id)
    found = []
    waiting = threading.Thread(target=lambda: found.append(caller.get(f"/v1/checks/{check_id}?wait=30")))
    waiting.start()
    time.sleep(0.2)
    entry_id = dead_letters.write(dead_letter_of_check('{"check_id": "x"}', None, invalid, 1))
    waiting.join()
    assert found[0].json["state"] == "dead_lettered"
    assert found[0].json["dead_letter"]["reason"] == "unknown_policy"
    assert entry_id is not None
    stored = dead_letters.get(entry_id)
    assert stored is not None
    dead_letters.drop(stored)
    assert caller.get(f"/v1/checks/{check_id}").status == 404


def test_the_thumbnail_is_the_one_of_the_verdict(
    caller: Caller, judged: Callable[[], str], client: Client
) -> None:
    """The bytes that the event's digest names."""
    check_id = judged()
    (event,) = client.wait_for(check_id).values()
    reply = caller.get(f"/v1/checks/{check_id}/thumbnail")
    assert reply.body == client.thumbnail(event)
    assert reply.headers["content-type"] == event.envelope.data.thumbnail.content_type  # type: ignore[union-attr]
    assert caller.get("/v1/checks/unknown/thumbnail").reason == "not_found"


@pytest.mark.usefixtures("worker")
def test_a_thousand_checks_by_sixteen_clients_have_one_verdict_each(
    caller: Caller, make_picture: MakePicture, client: Client
) -> None:
    """Here with a fifth of them: half by reference, half uploaded, every tenth request sent twice."""
    picture = make_picture(seed=5)
    raw, headers = multipart(picture, {})
    key = ""

    def submitted(number: int) -> str:
        name = {"Idempotency-Key": f"many-{number}"}
        if number % 2:
            body, options = None, {"raw": raw, "headers": {**headers, **name}}
        else:
            body, options = {"bucket": "test-uploads", "key": key}, {"headers": name}
        replies = [caller.post("/v1/checks", body, **options) for _ in range(1 + (number % 10 == 0))]
        assert {reply.status for reply in replies} == {202}
        (check_id,) = {reply.json["check_id"] for reply in replies}
        return str(check_id)

    first = caller.post("/v1/checks", raw=raw, headers=headers).json["check_id"]
    key = client.wait_for(first)[first].envelope.subject.removeprefix("s3://test-uploads/")
    since = client.position()
    with ThreadPoolExecutor(16) as threads:
        check_ids = list(threads.map(submitted, range(200)))
    assert len(set(check_ids)) == 200
    client.wait_for(*check_ids, timeout_seconds=120, since=since)
    found = [event.check_id for event in client.events(since=since, follow=False)]
    assert sorted(found) == sorted(check_ids)


def test_an_appeal_that_is_sent_twice_is_one_and_its_decision_is_shown(
    caller: Caller, judged: Callable[[], str], module_database: Database, api_settings: Settings
) -> None:
    """Against an automatic verdict that no relay has stored: it comes to review first of all."""
    check_id = judged()
    path, once = f"/v1/checks/{check_id}/appeals", {"Idempotency-Key": "appeal-1"}
    opened = caller.post(path, {"reason": "I painted it"}, headers=once)
    assert (opened.status, opened.json["decided_at"]) == (201, None)
    again = caller.post(path, {"reason": "I painted it"}, headers=once)
    assert (again.status, again.json) == (200, opened.json)
    assert caller.post(path, {}).json["id"] == opened.json["id"]
    review = api_settings.model_copy(update={"review_undo_seconds": 0}).review
    with module_database.transaction() as tx:
        senior = enrol(tx, "senior", "Senior", senior=True)
        claimed = claim(tx, review, senior)
        assert isinstance(claimed, Claimed)
        assert (claimed.purpose, claimed.appeal_reason) == ("appeal", "I painted it")
        decide(tx, review, claimed.review_id, claimed.lease, senior, outcome="real", basis="source_found")
    shown = caller.get(f"/v1/checks/{check_id}").json["decision"]
    decision = read_decision(json.dumps(shown))
    assert (decision.data.outcome, decision.data.appeal) == ("real", opened.json["id"])
    again = caller.post(path, {"reason": "I painted it"}, headers=once)
    assert again.status == 200
    assert again.json["decided_at"] is not None


def test_an_appeal_needs_a_verdict(caller: Caller, caller_with: CallerWith) -> None:
    """An unknown check has none, and a rejected upload neither; the scope is one of its own."""
    assert caller.post("/v1/checks/unknown/appeals", {}).reason == "not_found"
    body = {"check_id": str(uuid4()), "bucket": "test-uploads", "key": "no-such.jpg"}
    caller.post("/v1/checks", body)
    caller.get(f"/v1/checks/{body['check_id']}?wait=30")
    assert caller.post(f"/v1/checks/{body['check_id']}/appeals", {}).reason == "not_judged"
    other = caller_with("checks:read", "checks:write")
    assert other.post("/v1/checks/unknown/appeals", {}).reason == "scope_missing"
    assert caller.post("/v1/checks/unknown/appeals", {"reason": "a" * 2001}).status == 422


def test_a_check_that_redis_has_forgotten_is_answered_from_the_database(
    caller: Caller, judged: Callable[[], str], module_broker: redis.Redis
) -> None:
    """Once the relay, or an appeal, has stored it."""
    check_id = judged()
    before = caller.get(f"/v1/checks/{check_id}").json
    caller.post(f"/v1/checks/{check_id}/appeals", {})
    for key in module_broker.scan_iter(f"*{check_id}*"):
        module_broker.delete(key)
    wait_until(lambda: caller.get(f"/v1/checks/{check_id}").json.get("event") == before["event"])
