"""Celery's consumer, with acknowledgements by the thread that did the work, before it starts the next check.

Celery leaves acknowledgements to its event loop, which a shutdown ends first: a check that finishes after
that would be acknowledged with the last one of all, or be requeued and done again.
"""

from collections.abc import Callable
from typing import Any

from celery.worker import consumer

from worker.telemetry.logs import get_logger

log = get_logger(__name__)


class Consumer(consumer.Consumer):
    """Acknowledges in the calling thread; tells `on_stop` when the event loop has ended.

    `on_stop` gets the consumer while its connection is still open, before Celery waits for running checks.
    """

    def __init__(self, *args: Any, on_stop: Callable[[Any], None], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._on_stop = on_stop

    def call_soon_ack(self, p: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
        """Acknowledge, requeue or reject a message now, and wake the event loop for the next one."""
        try:
            p(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - kombu's channel loses its parts while it is closed
            log.warning("acknowledgement_failed", error=f"{type(error).__name__}: {error}")
        self.hub.call_soon(_wake)  # type: ignore[attr-defined] # the stub leaves it out
        return p

    def stop(self) -> None:
        """Stop taking messages."""
        super().stop()
        self._on_stop(self)


def _wake() -> None:
    """No-op: a callback makes the event loop poll."""
