"""kombu's Redis transport with its holes mended; it overrides private methods, so kombu is pinned.

- **A message is taken in one step.** kombu pops it with BRPOP and then notes it in `unacked` with another
  command: a worker killed between the two, a reply lost in a dead socket, a server that dies or has no memory
  left for the second command each lose the message. Here a script on the server notes it first and pops it
  then.
- **An entry that would end the worker becomes a dead letter** before Celery sees it (`contract.envelope`).
- **What is asked of a closed channel is a lost connection**, not an AttributeError that ends the worker.
- **A server that refuses commands** (no memory, disk full, read-only) makes the worker wait, not end.

What was taken is settled by `worker.broker.held_messages`.
"""

# The stubs of kombu leave out what is private.
# mypy: disable-error-code="attr-defined,misc"

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import Empty
from time import monotonic, sleep, time
from typing import Any

import redis
from kombu.transport import redis as stock
from kombu.utils.json import dumps

from worker.broker.dead_letters import DeadLetters, dead_letter_of_entry
from worker.broker.held_messages import BETWEEN, HeldMessages
from worker.contract.envelope import MAX_ENTRY_BYTES, admit
from worker.contract.messages import InvalidMessageError
from worker.telemetry.logs import get_logger

log = get_logger(__name__)

# How long a worker rests when every queue is empty, and when the server refuses to serve.
IDLE_SECONDS = 0.05
REFUSED_SECONDS = 1.0

# KEYS: unacked, its index, the lists; ARGV: now, the longest entry, and for each list what unacked holds
# after an entry. What has no tag, or would not survive kombu's way back to the queue, stays where it is.
_TAKE = """
for i = 3, #KEYS do
  local entry = redis.call('LINDEX', KEYS[i], -1)
  if entry then
    local tag
    if #entry <= tonumber(ARGV[2]) then
      local readable, message = pcall(cjson.decode, entry)
      if readable and type(message) == 'table' and type(message.headers) == 'table'
          and type(message.properties) == 'table' then
        tag = message.properties.delivery_tag
      end
    end
    if type(tag) ~= 'string' or #tag == 0 or #tag > 255 then return {KEYS[i], entry, ''} end
    redis.call('HSET', KEYS[1], tag, '[' .. entry .. ARGV[i])
    redis.call('ZADD', KEYS[2], ARGV[1], tag)
    redis.call('RPOP', KEYS[i])
    return {KEYS[i], entry, tag}
  end
end
return false
"""


class Channel(stock.Channel):
    """Takes messages in one step, and only those that are understood."""

    QoS = HeldMessages
    dead_letter_stream = "dead-letters"
    dead_letter_stream_max_length = 10_000
    longest_wait_seconds = 60.0
    from_transport_options = (
        *stock.Channel.from_transport_options,
        "dead_letter_stream",
        "dead_letter_stream_max_length",
        "longest_wait_seconds",
    )
    _resting_until = 0.0

    def finish_taking(self) -> None:
        """Read the answer to a question that is still open: the message in it is ours, or goes back."""
        if self._in_poll:
            with suppress(Empty):
                self._brpop_read()

    def write_dead_letter(self, entry: bytes, queue: str, refused: InvalidMessageError) -> None:
        """Write the dead letter of an entry. Raises redis.RedisError."""
        with self.conn_or_acquire() as client:
            dead_letters = DeadLetters(
                client, stream=self.dead_letter_stream, max_length=self.dead_letter_stream_max_length
            )
            dead_letters.write(dead_letter_of_entry(entry, queue, refused))
        log.error("check_dead_lettered", reason=refused.reason, detail=str(refused), queue=queue)

    def _connparams(self, asynchronous: bool = False) -> Any:
        if self.connection is None:
            raise redis.ConnectionError("the channel is closed")
        return super()._connparams(asynchronous=asynchronous)

    def _queue_bind(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._queue_bind(*args, **kwargs)
        except redis.ResponseError as error:
            log.warning("queue_refused", why=str(error))
            sleep(REFUSED_SECONDS)
            # Celery connects again after a lost connection; after any other error it ends.
            raise redis.ConnectionError(str(error)) from error

    def _brpop_start(self, timeout: float | None = None) -> None:  # noqa: ARG002 - kombu's own signature
        """Ask for a message; kombu's poller calls this whenever nothing is asked for."""
        if monotonic() < self._resting_until:
            return
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        lists = [(self._q_for_pri(queue, step), queue) for step in self.priority_steps for queue in queues]
        ends = [f"{BETWEEN.decode()}{dumps(queue)}]" for _, queue in lists]
        keys = [self.unacked_key, self.unacked_index_key, *(name for name, _ in lists)]
        connection = self.client.connection
        self._in_poll = connection
        self._brpop_sent_at = monotonic()
        connection.send_command("EVAL", _TAKE, len(keys), *keys, time(), MAX_ENTRY_BYTES, *ends)

    def _brpop_read(self, **options: Any) -> bool:
        """Read the answer and deliver the message in it. Raises queue.Empty when there was none."""
        try:
            with self._serving():
                taken = self.client.parse_response(self.client.connection, "EVAL", **options)
                if not taken:
                    self._resting_until = monotonic() + IDLE_SECONDS
                    raise Empty
                name, entry, tag = taken
                queue = name.decode().rsplit(self.sep, 1)[0]
                payload = self._admitted(name, entry, tag, queue)
                if payload is None:
                    return True
        finally:
            self._in_poll = None
        self.connection._deliver(payload, queue)  # noqa: SLF001 - as kombu does
        return True

    @contextmanager
    def _serving(self) -> Iterator[None]:
        try:
            yield
        except redis.ResponseError as error:
            log.warning("queue_refused", why=str(error))
            self._resting_until = monotonic() + REFUSED_SECONDS
            raise Empty from error

    def _admitted(self, name: bytes, entry: bytes, tag: bytes, queue: str) -> Any:
        """Return the message in an entry, or None for one that is a dead letter now."""
        try:
            payload = admit(entry, queue, longest_wait_seconds=self.longest_wait_seconds)
        except InvalidMessageError as error:
            refused = error
        else:
            if tag:
                return payload
            refused = InvalidMessageError("unreadable_entry", "The entry is no JSON that Redis can read.")
        # Buried first and removed then: whatever happens between the two, there is one letter.
        self.write_dead_letter(entry, queue, refused)
        if tag:
            self.qos._remove_from_indices(tag).execute()  # noqa: SLF001 - it was never appended
        else:
            with self.conn_or_acquire() as client:
                client.lrem(name, -1, entry)
        return None


class Transport(stock.Transport):
    """kombu's Redis transport for this application alone; others in the same process keep kombu's own."""

    Channel = Channel

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Let the event loop run the channels, and wake it after each rest."""
        super().register_with_event_loop(connection, loop)
        loop.call_repeatedly(IDLE_SECONDS, _wake)


def _wake() -> None:
    """Do nothing: the loop asks for messages in every round, and a timer makes a round."""
