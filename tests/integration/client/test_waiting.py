"""Waiting for events, in a thread and in an event loop: from where, for how many, and what an error says."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import redis

from tests.conftest import PATIENCE
from tests.integration.client.conftest import Publish, rejection
from worker.broker import keys
from worker.broker.dead_letters import DeadLetters, dead_letter_of_check
from worker.broker.verdict_stream import Event
from worker.checks.attempts import Attempts
from worker.client import AsyncClient, Client, NoVerdictError
from worker.contract.messages import ImageCheck, InvalidMessageError
from worker.settings import Settings
from worker.telemetry.metrics import ENTRIES_SKIPPED

#: Waits with one of the two clients for checks that it submits itself, after a block ran.
Wait = Callable[..., dict[str, Event]]


def _wait_blocking(settings: Settings, checks: list[ImageCheck], then: Callable[[], None], **o: Any) -> Any:
    with Client(settings) as client:
        client.submit_many(checks)
        then()
        return client.wait_for(*(check.check_id for check in checks), **o)


def _wait_asyncio(settings: Settings, checks: list[ImageCheck], then: Callable[[], None], **o: Any) -> Any:
    async def wait() -> dict[str, Event]:
        async with AsyncClient(settings) as client:
            await client.submit_many(checks)
            then()
            return await client.wait_for(*(check.check_id for check in checks), **o)

    return asyncio.run(wait())


@pytest.fixture(params=[_wait_blocking, _wait_asyncio], ids=["blocking", "asyncio"])
def wait(request: pytest.FixtureRequest) -> Wait:
    """Provide each client's way to submit and wait."""
    waiting: Wait = request.param
    return waiting


def _check(check_id: str) -> ImageCheck:
    return ImageCheck(check_id=check_id, bucket="uploads", key="a.jpg")


def _bytes_sent(broker: redis.Redis) -> int:
    sent: Any = broker.info("stats")
    return int(sent["total_net_output_bytes"])


def test_a_wait_starts_at_its_own_submission(
    settings: Settings, broker: redis.Redis, publish: Publish, wait: Wait
) -> None:
    """It reads the events that come after it: 500 earlier ones of 600 bytes and more are not sent again."""
    for number in range(500):
        publish(f"earlier-{number}")
    before = _bytes_sent(broker)
    found = wait(settings, [_check("mine")], lambda: publish("mine"))
    assert list(found) == ["mine"]
    assert _bytes_sent(broker) - before < 500 * 100


def test_an_event_that_was_published_before_the_wait_is_found(
    settings: Settings, publish: Publish, wait: Wait
) -> None:
    """Among those of others, in the order of the stream."""

    def answer_many() -> None:
        for check_id in ["first", *(f"other-{number}" for number in range(1100)), "second"]:
            publish(check_id)

    found = wait(settings, [_check("first"), _check("second")], answer_many)
    assert sorted(found) == ["first", "second"]
    assert all(event.check_id == check_id for check_id, event in found.items())


def test_a_check_of_another_client_is_found_wherever_its_event_is(
    settings: Settings, publish: Publish
) -> None:
    """Its submission is not known here, so the stream is read from its beginning, or from `since`."""
    publish("theirs")
    with Client(settings) as client:
        assert list(client.wait_for("theirs")) == ["theirs"]
        with pytest.raises(NoVerdictError):
            client.wait_for("theirs", since=client.position(), timeout_seconds=0.3)


def test_a_dead_letter_of_an_earlier_submission_does_not_end_a_wait(
    settings: Settings, publish: Publish, wait: Wait
) -> None:
    """One of this submission does, at once, and the error has it."""
    dead_letters = DeadLetters.connect(settings)

    def bury(check_id: str) -> None:
        invalid = InvalidMessageError("model_failed", "It failed.", check_id)
        dead_letters.write(dead_letter_of_check(f'{{"check_id": "{check_id}"}}', None, invalid, 1))

    bury("again")
    assert list(wait(settings, [_check("again")], lambda: publish("again"))) == ["again"]
    started = time.monotonic()
    with pytest.raises(NoVerdictError, match=r"lost: model_failed \(It failed.\)") as failed:
        wait(settings, [_check("lost")], lambda: bury("lost"), timeout_seconds=60)
    assert time.monotonic() - started < 30
    assert set(failed.value.dead_letters) == {"lost"}
    assert not failed.value.missing
    dead_letters.close()


def test_the_error_of_a_wait_says_why_checks_were_retried(
    settings: Settings, broker: redis.Redis, publish: Publish, wait: Wait
) -> None:
    """As a worker noted it, in a hash that expires; a check that nobody took has no such reason."""
    attempts = Attempts(broker, deadline_seconds=60, max_attempts=3, ttl_seconds=600)

    def fail() -> None:
        with attempts.start("unlucky"):
            attempts.note_retry("unlucky", "storage_unavailable", "s3://uploads/a.jpg: refused " + 1000 * "x")
        publish("lucky")

    with pytest.raises(NoVerdictError) as failed:
        wait(settings, [_check("unlucky"), _check("idle"), _check("lucky")], fail, timeout_seconds=0.5)
    error = failed.value
    assert list(error.found) == ["lucky"]
    assert error.missing == {"unlucky", "idle"}
    assert {check_id: retry.reason for check_id, retry in error.retries.items()} == {
        "unlucky": "storage_unavailable"
    }
    assert str(error).startswith(
        "unlucky: no verdict in time, retried for storage_unavailable: s3://uploads/a.jpg: refused"
    )
    assert str(error).endswith("idle: no verdict in time")
    assert len(error.retries["unlucky"].detail) == 300
    assert 0 < int(broker.ttl(keys.attempts("unlucky"))) <= 600  # type: ignore[arg-type]


def test_the_error_of_a_wait_for_thousands_names_the_first(settings: Settings, wait: Wait) -> None:
    """And has the others in its attributes."""
    checks = [_check(f"check-{number:03}") for number in range(900)]
    with pytest.raises(NoVerdictError, match=r"check-000: no verdict in time; .*; 895 more") as failed:
        wait(settings, checks, lambda: None, timeout_seconds=0.2)
    assert len(failed.value.missing) == 900


def test_one_thread_waits_for_thousands_of_checks(
    settings: Settings, broker: redis.Redis, publish: Publish
) -> None:
    """Here a thousand: in one call, and in an event loop with a task for each, over few connections."""
    count = 1000
    roomy = settings.model_copy(update={"max_queue_length": 10 * count})
    checks = [_check(f"check-{number}") for number in range(count)]
    names = {check.check_id for check in checks}

    def publish_all() -> None:
        for name in names:
            publish(name)

    started = time.monotonic()
    assert _wait_blocking(roomy, checks, publish_all).keys() == names
    blocking = time.monotonic() - started

    others = len(broker.client_list())  # of the tests' other workers on the same server

    async def each_alone() -> list[dict[str, Event]]:
        async with AsyncClient(roomy) as client:
            await client.submit_many(checks)

            async def one(check: ImageCheck) -> dict[str, Event]:
                return await client.wait_for(check.check_id)

            waiting: list[Awaitable[dict[str, Event]]] = [one(check) for check in checks]
            found = await asyncio.gather(*waiting)
            assert len(broker.client_list()) - others < 40
            return found

    started = time.monotonic()
    # Published before: a second submission of an answered check has its event published again by a worker.
    for key in broker.scan_iter("*:published:*"):
        broker.delete(key)

    async def both() -> list[dict[str, Event]]:
        waiting = asyncio.create_task(each_alone())
        await asyncio.sleep(0.2)
        await asyncio.to_thread(publish_all)
        return await waiting

    found = asyncio.run(both())
    assert {name for each in found for name in each} == names
    assert blocking < 20 * PATIENCE
    assert time.monotonic() - started < 30 * PATIENCE


def test_events_of_later_versions_are_consumed_or_skipped_and_counted(
    settings: Settings, broker: redis.Redis, publish: Publish
) -> None:
    """New fields do not matter; an event of a new type is skipped, and acknowledged for the group."""
    later = json.loads(rejection("later").model_dump_json())
    later["data"]["added"] = later["added"] = 1
    broker.xadd(settings.verdict_stream, {"event": json.dumps(later), "added": "1"})
    broker.xadd(settings.verdict_stream, {"event": json.dumps({**later, "type": "image.scanned.v1"})})
    publish("last")
    unknown = ENTRIES_SKIPPED.labels("unknown_type")
    before = unknown._value.get()  # noqa: SLF001 - the library has no other way to read one

    async def consumed() -> list[str]:
        async with AsyncClient(settings) as client:
            found = []
            async for delivered in client.verdicts("asyncio", follow=False):
                found.append(delivered.event.check_id)
                await delivered.renew()
                await delivered.ack()
            assert [event.check_id async for event in client.events(follow=False)] == found
            return found

    assert asyncio.run(consumed()) == ["later", "last"]
    with Client(settings) as client:
        assert [event.check_id for event in client.events(follow=False)] == ["later", "last"]
    assert unknown._value.get() - before == 3  # noqa: SLF001 - the same
    assert broker.xpending(settings.verdict_stream, "asyncio")["pending"] == 0  # type: ignore[index]


def test_a_member_in_an_event_loop_resumes_claims_and_survives_the_loss_of_its_group(
    settings: Settings, broker: redis.Redis, publish: Publish, wait_until: Callable[..., None]
) -> None:
    """As in a thread: unacknowledged events again at once under its name, later to another member."""
    publish("one")
    publish("two")

    async def received(name: str, *, acknowledged: bool = False) -> list[str]:
        async with AsyncClient(settings) as client:
            found = []
            async for each in client.verdicts("g", consumer=name, follow=False, claim_after_seconds=0.2):
                found.append(each.event.check_id)
                if acknowledged:
                    await each.ack()
            return found

    assert asyncio.run(received("first")) == ["one", "two"]
    assert asyncio.run(received("first")) == ["one", "two"]
    claimed: list[str] = []

    def claim() -> bool:
        claimed.extend(asyncio.run(received("second", acknowledged=True)))
        return len(claimed) == 2

    wait_until(claim, "another member claims both")
    assert claimed == ["one", "two"]

    async def lose_the_group() -> str:
        async with AsyncClient(settings) as client:
            members = client.verdicts("g", consumer="first")
            following = asyncio.create_task(anext(members))
            await asyncio.sleep(0.1)
            broker.delete(settings.verdict_stream)
            await asyncio.to_thread(publish, "three")
            return (await asyncio.wait_for(following, 30)).event.check_id

    assert asyncio.run(lose_the_group()) == "three"
