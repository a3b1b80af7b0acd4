"""People's decisions reach a platform by the clients and by the command."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping

import pytest

from deploy.generators.schemas import examples
from tests.conftest import settings_of
from worker.broker.decision_stream import DecisionStream
from worker.client import AsyncClient, Client
from worker.settings import Settings


@pytest.fixture
def published(service_environment: Mapping[str, str]) -> Iterator[Settings]:
    """Publish two decisions and return the settings of their consumers."""
    settings = settings_of(service_environment)
    with Client(settings) as client:
        client._redis.flushdb()  # noqa: SLF001 - the module's own database
    example = examples()["image-decision-v1"]
    stream = DecisionStream.connect(settings)
    stream.publish([(name, json.dumps(example | {"id": name})) for name in ("first", "second")])
    yield settings
    stream.close()


def test_a_decision_stays_with_its_group_until_it_is_acknowledged(published: Settings) -> None:
    with Client(published) as client:
        seen = list(client.decisions("platform", follow=False))
        assert [each.event.envelope.id for each in seen] == ["first", "second"]
        seen[0].ack()
        (again,) = client.decisions("platform", follow=False)
        assert again.event.envelope.data.outcome == "real"
        again.renew()
        again.ack()
        assert list(client.decisions("platform", follow=False)) == []
        assert list(client.verdicts("platform", follow=False)) == []


def test_the_asyncio_client_makes_the_same_promise(published: Settings) -> None:
    async def consume() -> list[str]:
        async with AsyncClient(published) as client:
            seen = [each async for each in client.decisions("platform", follow=False)]
            await seen[0].ack()
            await seen[1].renew()
            return [each.event.envelope.id async for each in client.decisions("platform", follow=False)]

    assert asyncio.run(consume()) == ["second"]


@pytest.mark.parametrize("options", [[], ["--group", "platform"]])
def test_the_command_prints_a_line_for_each_decision(
    published: Settings, service_environment: Mapping[str, str], options: list[str]
) -> None:
    """As fields in a pipe, or with --json as the event itself."""
    environment = {**service_environment, "PATH": ""}
    command = [sys.executable, "-m", "worker.cli", "decisions", "show", *options]
    plain = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert [line.split("\t")[1].strip() for line in plain.stdout.splitlines()] == ["real", "real"]
    as_json = subprocess.run(
        [sys.executable, "-m", "worker.cli", "decisions", "show", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert [json.loads(line)["id"] for line in as_json.stdout.splitlines()] == ["first", "second"]
    assert published.decision_stream == "decisions"
