"""Every method of both clients says in time that the broker cannot be reached, and why."""

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.conftest import PATIENCE
from tests.integration.client.conftest import rejection
from worker.broker.verdict_stream import Event
from worker.client import AsyncClient, AsyncConsumedEvent, Client, ConsumedEvent, QueueUnreachableError
from worker.contract.messages import ImageCheck
from worker.embedded.services import EmbeddedServices
from worker.embedded.startup import HOST, free_ports
from worker.settings import Settings

LIMIT_SECONDS = 2.0
EVENT = Event("1-1", rejection("c"), "")

BLOCKING: dict[str, Callable[[Client], Any]] = {
    "submit": lambda client: client.submit("uploads", "a.jpg"),
    "submit_many": lambda client: client.submit_many([ImageCheck(bucket="uploads", key="a.jpg")]),
    "position": lambda client: client.position(),
    "events": lambda client: next(client.events(), None),
    "verdicts": lambda client: next(client.verdicts("group"), None),
    "wait_for": lambda client: client.wait_for("c"),
    "ack": lambda client: ConsumedEvent(EVENT, client, client._verdict_stream, "group", "me").ack(),  # noqa: SLF001 - as the client makes it
    "renew": lambda client: ConsumedEvent(EVENT, client, client._verdict_stream, "group", "me").renew(),  # noqa: SLF001 - as the client makes it
}
ASYNCIO: dict[str, Callable[[AsyncClient], Any]] = {
    "submit": lambda client: client.submit("uploads", "a.jpg"),
    "submit_many": lambda client: client.submit_many([ImageCheck(bucket="uploads", key="a.jpg")]),
    "position": lambda client: client.position(),
    "events": lambda client: anext(client.events(), None),
    "verdicts": lambda client: anext(client.verdicts("group"), None),
    "wait_for": lambda client: client.wait_for("c"),
    "ack": lambda client: AsyncConsumedEvent(EVENT, client._broker, "verdicts", "group", "me").ack(),  # noqa: SLF001 - the same
    "renew": lambda client: AsyncConsumedEvent(EVENT, client._broker, "verdicts", "group", "me").renew(),  # noqa: SLF001 - the same
}


@pytest.fixture(scope="module")
def silent() -> Iterator[int]:
    """Provide the port of a server that accepts connections and says nothing, as a frozen one does."""
    with socket.create_server((HOST, 0), backlog=200) as server:
        yield server.getsockname()[1]


@pytest.fixture(params=["no server", "silent", "TLS on a plain port", "TLS on a silent port"])
def settings(request: pytest.FixtureRequest, services: EmbeddedServices, silent: int) -> Settings:
    """Return settings that name a broker which cannot be reached."""
    url = {
        "no server": f"redis://{HOST}:{free_ports(1)[0]}/0",
        "silent": f"redis://{HOST}:{silent}/0",
        "TLS on a plain port": services.redis_url.replace("redis://", "rediss://"),
        "TLS on a silent port": f"rediss://{HOST}:{silent}/0",
    }[request.param]
    return Settings(redis_url=url)


def test_every_method_of_the_client_raises_within_its_limit(settings: Settings) -> None:
    """The same error, with a reason."""

    def seconds(name: str) -> float:
        with Client(settings, timeout_seconds=LIMIT_SECONDS) as client:
            started = time.monotonic()
            with pytest.raises(QueueUnreachableError, match=r"\w+ .*\w"):
                BLOCKING[name](client)
            return time.monotonic() - started

    with ThreadPoolExecutor(len(BLOCKING)) as threads:
        spent = dict(zip(BLOCKING, threads.map(seconds, BLOCKING), strict=True))
    # The threads share two cores.
    assert max(spent.values()) < LIMIT_SECONDS + PATIENCE, spent


def test_every_method_of_the_asyncio_client_raises_within_its_limit(settings: Settings) -> None:
    """The same error, with a reason."""

    async def seconds(name: str) -> float:
        async with AsyncClient(settings, timeout_seconds=LIMIT_SECONDS) as client:
            started = time.monotonic()
            with pytest.raises(QueueUnreachableError, match=r"\w+ .*\w"):
                await ASYNCIO[name](client)
            return time.monotonic() - started

    async def all_of_them() -> list[float]:
        return await asyncio.gather(*map(seconds, ASYNCIO))

    spent = dict(zip(ASYNCIO, asyncio.run(all_of_them()), strict=True))
    assert max(spent.values()) < LIMIT_SECONDS + PATIENCE, spent
