"""What a worker holds of the broker: messages that it took, each of them settled once.

- **A message is settled once.** kombu acknowledges also what was put back, and takes it away from the worker
  that holds it under the same tag by then.
- **A message that is put back is the next to be taken.** kombu puts what a task rejects behind all others.
- **A message that could not be acknowledged takes no place in the worker.** kombu keeps it among those in
  work, and a worker that has as many of them as it may takes nothing any more.
"""

# The stubs of kombu leave out what is private.
# mypy: disable-error-code="attr-defined,misc"

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from kombu.transport import redis as stock
from kombu.transport import virtual

from worker.contract.messages import InvalidMessageError
from worker.telemetry.logs import get_logger

log = get_logger(__name__)

# What stands in unacked between an entry and the name of its queue: no exchange.
BETWEEN = b',"",'


class HeldMessages(stock.QoS):
    """What a channel took and has not settled; safe for threads. The server noted it when it was taken."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._settled = threading.Condition()
        self._settling: set[str] = set()

    def append(self, message: Any, delivery_tag: str) -> None:
        """Note a message that was taken."""
        with self._settled:
            # Taken again before the thread that put it back has heard so, which then must not forget it.
            self._settling.discard(delivery_tag)
            virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Forget a message, here and on the server. Raises redis.ConnectionError and redis.TimeoutError.

        The server delivers it again when it could not be told. Were it kept here, each would take a place for
        ever, and a worker without places takes nothing.
        """
        if self._begins_to_settle(delivery_tag):
            with self._forgotten_here(delivery_tag):
                self._remove_from_indices(delivery_tag).execute()

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Put a message back where it is taken next, or drop it; it is forgotten here as in `ack`."""
        if self._begins_to_settle(delivery_tag):
            with self._forgotten_here(delivery_tag):
                if requeue:
                    self.restore_by_tag(delivery_tag)
                else:
                    self._remove_from_indices(delivery_tag).execute()

    def put_back(self, delivery_tag: str) -> bool:
        """Put a message back where it is taken next; return False if it was settled before.

        Raises redis.RedisError; the message is still held then.
        """
        if not self._begins_to_settle(delivery_tag):
            return False
        told = False
        try:
            self.restore_by_tag(delivery_tag)
            told = True
        finally:
            self._ends_to_settle(delivery_tag, forget=told)
        return True

    def restore_unacked(self, client: Any = None) -> None:  # noqa: ARG002 - kombu's own signature
        """Put back what is held, unless the server refuses. Raises redis.RedisError when it is away."""
        try:
            for tag in self.held():
                self.put_back(tag)
        except redis.ResponseError as error:
            log.warning("requeue_refused", why=str(error))
        with self._settled:
            (self._delivered or {}).clear()

    def held(self) -> list[str]:
        """Return the delivery tags of what this process took and has not settled, oldest first."""
        with self._settled:
            return [tag for tag in self._delivered or () if self._is_held(tag)]

    def finish_settling(self, seconds: float) -> None:
        """Wait until what is being settled is. Raises redis.TimeoutError."""
        with self._settled:
            if not self._settled.wait_for(lambda: not self._settling, seconds):
                raise redis.TimeoutError("the broker did not answer an acknowledgement in time")

    def _begins_to_settle(self, delivery_tag: str) -> bool:
        """Return whether the message is this thread's to settle.

        After it went back another worker may hold it under the same tag, and must not lose it.
        """
        with self._settled:
            if not self._is_held(delivery_tag):
                return False
            self._settling.add(delivery_tag)
            return True

    def _ends_to_settle(self, delivery_tag: str, *, forget: bool) -> None:
        with self._settled:
            if delivery_tag in self._settling:
                self._settling.discard(delivery_tag)
                if forget:
                    virtual.QoS.ack(self, delivery_tag)
            self._settled.notify_all()

    def _is_held(self, delivery_tag: str) -> bool:
        settled = self._settling | (self._dirty or set())
        return delivery_tag in (self._delivered or ()) and delivery_tag not in settled

    def _flush(self) -> None:
        with self._settled:
            super()._flush()

    @contextmanager
    def _forgotten_here(self, delivery_tag: str) -> Iterator[None]:
        try:
            yield
        except redis.ResponseError as error:
            # Celery does not expect a server that refuses, and would end the worker.
            log.warning("acknowledgement_refused", why=str(error))
        finally:
            self._ends_to_settle(delivery_tag, forget=True)

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Put back what was taken and never acknowledged, unless the server refuses."""
        try:
            super().restore_visible(*args, **kwargs)
        except redis.ResponseError as error:
            log.warning("requeue_refused", why=str(error))

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        """Put a message back on its queue; one that cannot be read becomes a dead letter.

        Left in `unacked`, it would keep every later message from being put back. Raises redis.RedisError.
        """
        try:
            super().restore_by_tag(tag, client=client, leftmost=leftmost)
        except (*self.channel.connection_errors, redis.ResponseError):
            raise  # the server is away or refuses: nothing is wrong with the message
        except Exception as error:  # noqa: BLE001 - kombu's decoding raises whatever its type hooks do
            with self.channel.conn_or_acquire(client) as server:
                noted = server.hget(self.unacked_key, tag) or b""
                entry, _, queue = noted[1:-1].rpartition(BETWEEN)
                refused = InvalidMessageError("unreadable_entry", f"It cannot be put back: {error}"[:300])
                self.channel.write_dead_letter(entry or noted, queue.decode().strip('"'), refused)
                self._remove_from_indices(tag).execute()
