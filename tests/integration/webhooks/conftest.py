"""Endpoints, and senders that deliver to them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol
from uuid import UUID

import pytest

from worker.database.database import Database
from worker.relay.loops import Loop
from worker.settings import Settings
from worker.webhooks import endpoints
from worker.webhooks.endpoints import EventType
from worker.webhooks.sender import Sender

#: The receivers of tests are on this machine.
SETTINGS = Settings(webhook_networks="127.0.0.0/8", web_public_url="https://review.example.org")


class AddEndpoint(Protocol):
    """Adds endpoints."""

    def __call__(self, url: str, *types: EventType) -> tuple[UUID, str]:
        """Return the endpoint's id and secret; without types it subscribes to verdicts."""


#: Runs a sender, by default with retries at once, in the block.
Sending = Callable[..., AbstractContextManager[None]]


@pytest.fixture
def add_endpoint(database: Database) -> AddEndpoint:
    """Provide a function that adds endpoints."""

    def added(url: str, *types: EventType) -> tuple[UUID, str]:
        with database.transaction() as tx:
            endpoint, secret = endpoints.create(tx, url, types or ("image.verdict.v1",), by="tests")
        return endpoint.id, secret

    return added


@pytest.fixture
def sending(database: Database) -> Sending:
    """Provide a context manager that runs a sender."""

    @contextmanager
    def running(retry_delays: Sequence[float] = (0.01,) * 10) -> Iterator[None]:
        with (
            Sender(SETTINGS.webhooks, database, retry_delays=retry_delays) as sender,
            Loop("webhooks", sender.turn),
        ):
            yield

    return running
