"""Live updates: one LISTEN connection of this process, passed on to every open page."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from uuid import UUID

from worker.database.errors import DatabaseUnavailableError
from worker.telemetry.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.database.database import Database

log = get_logger(__name__)

#: The channel on which the database tells of changed reviews.
CHANNEL = "reviews"

# A page that reads so slowly has missed changes, and reads its state again.
_WAITING = 256
_RECONNECT_SECONDS = 1.0
# Counts are read once for all changes within the first, and after the second without any: leases end in
# silence.
_COUNT_SECONDS, _IDLE_SECONDS = 1.0, 5.0


@dataclass(frozen=True)
class Update:
    """What an open page hears."""

    #: `review`: one changed; `counts`: what waits now; `missed`: there may have been others.
    event: Literal["review", "counts", "missed"]
    #: JSON for `review`, HTML for `counts`.
    data: str = ""
    #: The review that changed.
    review: UUID | None = None


#: The review whose changes a page shows, `all` of them for a list, or `none`.
Shown = UUID | Literal["all", "none"]


class Live:
    """Hears what changes in the database while `run` runs, and tells every subscriber.

    `counts` returns what waits, as HTML; it may block.
    """

    def __init__(self, database: "Database", counts: "Callable[[], str]") -> None:
        self._database = database
        self._counts = counts
        self._changed = asyncio.Event()
        self._news = False
        self._subscribers: dict[asyncio.Queue[Update], Shown] = {}

    @property
    def subscribers(self) -> int:
        """Open pages of this process."""
        return len(self._subscribers)

    async def run(self) -> None:
        """Listen until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen())
            tasks.create_task(self._count())

    @asynccontextmanager
    async def subscribed(self, shown: Shown) -> AsyncIterator[asyncio.Queue[Update]]:
        """Provide a queue of the updates that concern a page."""
        queue: asyncio.Queue[Update] = asyncio.Queue(_WAITING)
        self._subscribers[queue] = shown
        try:
            yield queue
        finally:
            del self._subscribers[queue]

    async def _listen(self) -> None:
        while True:
            try:
                connected = False
                async for payload in self._database.notifications(CHANNEL, idle_seconds=_IDLE_SECONDS):
                    if payload is not None:
                        self._news = True
                        self._tell(Update("review", payload, UUID(json.loads(payload)["review"])))
                    elif not connected:
                        self._tell(Update("missed"))
                    self._changed.set()
                    connected = True
            except DatabaseUnavailableError as error:
                log.warning("live_updates_interrupted", error=str(error))
                await asyncio.sleep(_RECONNECT_SECONDS)

    async def _count(self) -> None:
        told = ""
        while True:
            await self._changed.wait()
            self._changed.clear()
            # A page may have been rendered between two changes that leave the same counts.
            news, self._news = self._news, False
            if self._subscribers:
                try:
                    html = await asyncio.to_thread(self._counts)
                except DatabaseUnavailableError:
                    html, news = told, False  # they are read again when the database is back
                if news or html != told:
                    self._tell(Update("counts", html))
                    told = html
            await asyncio.sleep(_COUNT_SECONDS)

    def _tell(self, update: Update) -> None:
        for queue, shown in self._subscribers.items():
            if update.event == "review" and shown not in {"all", update.review}:
                continue
            try:
                queue.put_nowait(update)
            except asyncio.QueueFull:
                with suppress(asyncio.QueueEmpty):
                    while True:
                        queue.get_nowait()
                queue.put_nowait(Update("missed"))
