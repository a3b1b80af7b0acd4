"""Live updates: one LISTEN connection of this process, passed on to every open page."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from worker.database.errors import DatabaseUnavailableError
from worker.telemetry.logs import get_logger

if TYPE_CHECKING:
    from worker.database.database import Database

log = get_logger(__name__)

#: The channel on which the database tells of changed reviews.
CHANNEL = "reviews"

# A page that reads so slowly has missed changes, and reads its state again.
_WAITING = 256
_RECONNECT_SECONDS = 1.0


class Live:
    """Hears what changes in the database while `run` runs, and tells every subscriber."""

    def __init__(self, database: "Database") -> None:
        self._database = database
        self._subscribers: set[asyncio.Queue[str | None]] = set()

    @property
    def subscribers(self) -> int:
        """Open pages of this process."""
        return len(self._subscribers)

    async def run(self) -> None:
        """Listen until cancelled; after a lost connection everyone is told to read again."""
        while True:
            try:
                heard: set[bool] = set()
                async for payload in self._database.notifications(CHANNEL):
                    # The first None says that the connection is there; later ones only that it still is.
                    if payload is not None or not heard:
                        self._tell(payload)
                    heard.add(True)
            except DatabaseUnavailableError as error:
                log.warning("live_updates_interrupted", error=str(error))
                await asyncio.sleep(_RECONNECT_SECONDS)

    @asynccontextmanager
    async def subscribed(self) -> AsyncIterator[asyncio.Queue[str | None]]:
        """Provide a queue of payloads; None in it means that some may be missing."""
        queue: asyncio.Queue[str | None] = asyncio.Queue(_WAITING)
        self._subscribers.add(queue)
        try:
            yield queue
        finally:
            self._subscribers.discard(queue)

    def _tell(self, payload: str | None) -> None:
        for queue in self._subscribers:
            try:
                queue.put_nowait(payload)
            except asyncio.QueueFull:
                with suppress(asyncio.QueueEmpty):
                    while True:
                        queue.get_nowait()
                queue.put_nowait(None)
