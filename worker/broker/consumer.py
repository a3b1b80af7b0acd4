"""Messages are settled by the thread that worked on them, before it begins another.

Celery leaves acknowledgements to its event loop, which a stop ends first: what is finished after that would
wait for the last check of all, or be put back and done again.
"""

import threading
from collections.abc import Callable
from typing import Any

from celery.exceptions import Reject
from celery.worker import consumer

from worker.telemetry.logs import get_logger

log = get_logger(__name__)


class ChecksInWork:
    """The messages that were begun, by delivery tag, until no more may begin; safe for threads.

    Of each thread the last one is known: it has settled those before.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun: dict[int, str] = {}
        self._closed = False

    def begin(self, tag: str) -> None:
        """Note that this thread begins a message. Raises `Reject`, to put it back, once none may begin."""
        with self._lock:
            if self._closed:
                raise Reject("the worker stops", requeue=True)
            self._begun[threading.get_ident()] = tag

    def close(self) -> frozenset[str]:
        """Let no more begin, and return what was begun last, whether it is settled or not."""
        with self._lock:
            self._closed = True
            return frozenset(self._begun.values())


class Consumer(consumer.Consumer):
    """Celery's consumer, but for who settles a message, and when."""

    def call_soon_ack(self, p: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
        """Settle a message now, and let the event loop look for the next one."""
        try:
            p(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - a channel that is just being closed loses its parts
            log.warning("acknowledgement_failed", why=f"{type(error).__name__}: {error}")
        self.hub.call_soon(_look)  # type: ignore[attr-defined] # the stub leaves it out
        return p


def _look() -> None:
    """Do nothing: the loop asks for messages in every round, and a callback makes a round."""
