"""kombu's Redis transport with the holes closed through which messages are lost, and who holds a message.

- **A message is taken in one step.** kombu pops it with BRPOP and notes it in `unacked` with another command;
  a worker killed between the two, a reply lost in a dead socket, a server that dies or has no memory for the
  second command each lose the message. Here one script on the server notes it and pops it.
- **A message is requeued in one step, and never decoded for it.** kombu parses what it noted and deletes the
  note even when that fails. Here a script moves the producer's bytes back to the end of the queue that is
  taken from next, whatever they are.
- **A message is acknowledged or requeued by one thread, once** (`UnacknowledgedMessages`).
- **An entry that cannot be decoded becomes a dead letter** before Celery sees it (`contract.envelope`).
- **A closed channel is a lost connection**, not an AttributeError that ends the worker.
- **A server that refuses commands** (no memory, disk full, read-only) makes the worker wait, not end.

It overrides private methods, so kombu is pinned.
"""

# kombu's stubs leave out what is private.
# mypy: disable-error-code="attr-defined,misc"

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import Empty
from time import monotonic, sleep
from typing import Any
from uuid import UUID, uuid4

import redis
from kombu.asynchronous import get_event_loop
from kombu.transport import redis as stock
from kombu.utils.json import dumps

from worker.broker.dead_letters import DeadLetters, dead_letter_of_entry
from worker.contract.envelope import MAX_ENTRY_BYTES, decode
from worker.contract.messages import QUEUES, InvalidMessageError
from worker.telemetry.logs import get_logger

log = get_logger(__name__)

# Pause before the next poll of empty queues: a part of the time since the last message, within two limits.
# So a message waits for a fraction of what its predecessors were apart, and an idle worker polls seldom.
_PAUSE_SHARE, ACTIVE_SECONDS, IDLE_SECONDS = 0.25, 0.005, 0.05
# Pause when the server refuses a command.
REFUSED_SECONDS = 1.0

# Stands for a tag in a command that is packed once; every tag has its length.
_NO_TAG = str(UUID(int=0)).encode()

# A note in `unacked` is kombu's: [entry, exchange, queue], and the exchange is empty.
_NOTE_MIDDLE = b',"",'

# KEYS: unacked, its index, the lists; ARGV: the message's tag, the most bytes of an entry to return, and for
# each list the end of its notes. The tag is ours: a producer may have given one tag to several messages.
_TAKE = """
for i = 3, #KEYS do
  local entry = redis.call('LINDEX', KEYS[i], -1)
  if entry then
    local time = redis.call('TIME')
    redis.call('HSET', KEYS[1], ARGV[1], '[' .. entry .. ARGV[i])
    redis.call('ZADD', KEYS[2], time[1], ARGV[1])
    redis.call('RPOP', KEYS[i])
    return {KEYS[i], string.sub(entry, 1, ARGV[2]), #entry, time[1] .. '.' .. string.format('%06d', time[2])}
  end
end
return false
"""

# Shared by the two scripts below. The first command is the one that a server without memory refuses.
_REQUEUE_TAG = """
local queues = {}
for i = 3, #KEYS do queues[KEYS[i]] = true end
local function requeue(tag)
  local note = redis.call('HGET', KEYS[1], tag)
  local entry, queue
  if note then entry, queue = string.match(note, '^%[(.*),"","([^"]*)"%]$') end
  if entry and not queues[queue] then return 0 end
  if entry then redis.call('RPUSH', queue, entry) end
  redis.call('ZREM', KEYS[2], tag)
  redis.call('HDEL', KEYS[1], tag)
  return entry and 1 or 0
end
"""
# KEYS: unacked, its index, the queues; ARGV: the delivery tag.
_REQUEUE = _REQUEUE_TAG + "return requeue(ARGV[1])"
# ARGV: the visibility timeout in seconds, and the most messages.
_REQUEUE_EXPIRED = (
    _REQUEUE_TAG
    + """
local last = tonumber(redis.call('TIME')[1]) - tonumber(ARGV[1])
local requeued = 0
for _, tag in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', last, 'LIMIT', 0, ARGV[2])) do
  requeued = requeued + requeue(tag)
end
return requeued
"""
)
# Messages requeued by one sweep after their visibility timeout: as many as do not hold up the server.
_EXPIRED_LIMIT = 1000


@dataclass(eq=False)
class _Message:
    """One message that was taken over a channel, whose QoS is `owner`."""

    owner: object
    claimed: bool = False


class UnacknowledgedMessages:
    """The messages that this process took from the broker and has not acknowledged; safe for threads.

    The one owner of a message's state in the process, over all of its connections. What holds:

    - A tag names one taking of a message: taken again, here or elsewhere, the message has another tag.
    - A message is unacknowledged from `take` until the thread that claimed it calls `settle`. Until then it
      counts against the prefetch limit of its channel.
    - One thread claims a message, to acknowledge or requeue it. `claim` refuses every other thread and every
      later call.
    - `start` marks the message that a thread works on. A thread acknowledges its message before it starts the
      next one, so the messages in work are among the last that each thread started.
    - After `close` no message starts.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._messages: dict[str, _Message] = {}
        self._started: dict[int, str] = {}
        self._closed = False
        self._paused = False

    @property
    def paused(self) -> bool:
        """Whether no message is taken at present."""
        return self._paused

    def pause(self, *, paused: bool) -> None:
        """Take no message from now on, or take messages again."""
        self._paused = paused

    def take(self, tag: str, owner: object) -> None:
        """Note a message that was taken over the channel of `owner`."""
        with self._changed:
            self._messages[tag] = _Message(owner)

    def start(self, tag: str) -> bool:
        """Mark the message that the calling thread works on from now; False when none may start any more."""
        with self._changed:
            if not self._closed:
                self._started[threading.get_ident()] = tag
            return not self._closed

    def close(self) -> frozenset[str]:
        """Let no further message start; return the tags that each thread started last."""
        with self._changed:
            self._closed = True
            return frozenset(self._started.values())

    def claim(self, tag: str) -> bool:
        """Return whether the calling thread alone is to settle the message."""
        with self._changed:
            message = self._messages.get(tag)
            if message is None or message.claimed:
                return False
            message.claimed = True
            return True

    def settle(self, tag: str, *, done: bool = True) -> None:
        """End a claim: the message is gone, or, if not `done`, unacknowledged again."""
        with self._changed:
            if done:
                self._messages.pop(tag, None)
            elif message := self._messages.get(tag):
                message.claimed = False
            self._changed.notify_all()

    @contextmanager
    def settling(self, tag: str) -> Iterator[bool]:
        """Claim the message for a block that acknowledges it, unless it raises; yield whether that is so."""
        claimed, done = self.claim(tag), False
        try:
            yield claimed
            done = True
        finally:
            if claimed:
                self.settle(tag, done=done)

    def tags(self, owner: object) -> list[str]:
        """Return the tags of a channel's messages that nobody has claimed, oldest first."""
        with self._changed:
            return [
                tag
                for tag, message in self._messages.items()
                if message.owner is owner and not message.claimed
            ]

    def count(self, owner: object) -> int:
        """Return how many messages of a channel are unacknowledged."""
        with self._changed:
            return sum(message.owner is owner for message in self._messages.values())

    def forget(self, owner: object) -> None:
        """Drop a channel's messages; the server delivers them again after the visibility timeout."""
        with self._changed:
            for tag in [tag for tag, message in self._messages.items() if message.owner is owner]:
                del self._messages[tag]

    def wait_settled(self, seconds: float) -> bool:
        """Wait until no claim is open; return whether that is so within `seconds`."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not any(message.claimed for message in self._messages.values()), seconds
            )


class QoS(stock.QoS):
    """Acknowledges and requeues the messages of one channel, on the server and in `UnacknowledgedMessages`.

    kombu's own records of the same (`_delivered`, `_dirty`) stay empty.
    """

    def __init__(self, channel: Any, prefetch_count: int = 0) -> None:
        super().__init__(channel, prefetch_count)
        self._messages: UnacknowledgedMessages = channel.unacknowledged

    def can_consume(self) -> bool:
        """Return whether the channel may take another message."""
        if self._messages.paused:
            return False
        return not self.prefetch_count or self._messages.count(self) < self.prefetch_count

    def append(self, message: Any, delivery_tag: str) -> None:  # noqa: ARG002 - kombu's own signature
        """Note a message that was taken; the server noted it when it gave it away."""
        self._messages.take(delivery_tag, self)

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message. Raises redis.ConnectionError and redis.TimeoutError.

        A message that the server could not be told of is delivered again. It is dropped here all the same:
        it would count against the prefetch limit for ever.
        """
        if self._messages.claim(delivery_tag):
            with self._settling(delivery_tag):
                self._remove_from_indices(delivery_tag).execute()

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Requeue a message, to be taken next, or drop it. Raises what `ack` raises."""
        if not requeue:
            self.ack(delivery_tag)
        elif self._messages.claim(delivery_tag):
            with self._settling(delivery_tag):
                self.restore_by_tag(delivery_tag)

    def requeue(self, delivery_tag: str) -> bool:
        """Requeue a message, to be taken next; return False if it was settled before.

        Raises redis.RedisError; the message is still unacknowledged then.
        """
        if not self._messages.claim(delivery_tag):
            return False
        done = False
        try:
            self.restore_by_tag(delivery_tag)
            done = True
        finally:
            self._messages.settle(delivery_tag, done=done)
        return True

    def unclaimed(self) -> list[str]:
        """Return the tags of the channel's messages that nobody has begun to settle, oldest first."""
        return self._messages.tags(self)

    def restore_unacked_once(self, stderr: Any = None) -> None:  # noqa: ARG002 - kombu's own signature
        """Requeue what is unacknowledged when the channel closes, or at the exit of the process."""
        self._on_collect.cancel()
        self.restore_unacked()

    def restore_unacked(self, client: Any = None) -> None:  # noqa: ARG002 - kombu's own signature
        """Requeue what is unacknowledged, unless the server refuses. Raises redis.RedisError."""
        try:
            for tag in self.unclaimed():
                self.requeue(tag)
        except redis.ResponseError as error:
            log.warning("requeue_refused", error=str(error))
        finally:
            self._messages.forget(self)

    def restore_visible(self, *_: Any, **__: Any) -> None:
        """Requeue what was not acknowledged within the visibility timeout, unless the server refuses."""
        try:
            self._eval(_REQUEUE_EXPIRED, self.visibility_timeout, _EXPIRED_LIMIT)
        except redis.ResponseError as error:
            log.warning("requeue_refused", error=str(error))

    def restore_by_tag(self, tag: str, client: Any = None, leftmost: bool = False) -> None:  # noqa: ARG002 - as in kombu
        """Move a message from `unacked` back to its queue, to be taken next. Raises redis.RedisError."""
        self._eval(_REQUEUE, tag)

    def _eval(self, script: str, *arguments: object) -> None:
        keys = [self.unacked_key, self.unacked_index_key, *QUEUES]
        with self.channel.conn_or_acquire() as client:
            client.eval(script, len(keys), *keys, *arguments)

    @contextmanager
    def _settling(self, delivery_tag: str) -> Iterator[None]:
        try:
            yield
        except redis.ResponseError as error:
            # Celery does not expect a server that refuses, and would end the worker.
            log.warning("acknowledgement_refused", error=str(error))
        finally:
            self._messages.settle(delivery_tag)


class Channel(stock.Channel):
    """Takes messages in one step, and hands on only those whose envelope can be decoded."""

    QoS = QoS
    unacknowledged = UnacknowledgedMessages()
    dead_letter_stream = "dead-letters"
    longest_wait_seconds = 60.0
    from_transport_options = (
        *stock.Channel.from_transport_options,
        "unacknowledged",
        "dead_letter_stream",
        "longest_wait_seconds",
    )
    _paused_until = 0.0
    _taken_at = 0.0
    _tag = ""
    _take: tuple[list[str], bytes] | None = None

    def finish_taking(self) -> None:
        """Read the reply that is still due, so that a message in it is ours."""
        if self._in_poll:
            with suppress(Empty):
                self._brpop_read()

    def requeue_unacknowledged(self, *, keep: Collection[str] = ()) -> int:
        """Requeue the messages that nobody has begun to settle, but those to `keep`; return how many.

        Raises redis.RedisError.
        """
        return sum(self.qos.requeue(tag) for tag in self.qos.unclaimed() if tag not in keep)

    def _connparams(self, asynchronous: bool = False) -> Any:
        if self.connection is None:
            raise redis.ConnectionError("the channel is closed")
        return super()._connparams(asynchronous=asynchronous)

    def _queue_bind(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._queue_bind(*args, **kwargs)
        except redis.ResponseError as error:
            log.warning("queue_refused", error=str(error))
            sleep(REFUSED_SECONDS)
            # Celery connects again after a lost connection; after any other error it ends.
            raise redis.ConnectionError(str(error)) from error

    def _brpop_start(self, timeout: float | None = None) -> None:  # noqa: ARG002 - kombu's own signature
        """Ask for a message; kombu's poller calls this whenever no reply is due."""
        if monotonic() < self._paused_until:
            return
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        connection = self.client.connection
        if self._take is None or self._take[0] != queues:
            self._take = queues, self._take_command(connection, queues)
        self._in_poll = connection
        self._brpop_sent_at = monotonic()
        self._tag = str(uuid4())
        connection.send_packed_command([self._take[1].replace(_NO_TAG, self._tag.encode())])

    def _take_command(self, connection: Any, queues: list[str]) -> bytes:
        """Return the command that takes a message, as it is sent, but for the message's tag."""
        # Every list of a queue comes before the next queue: Celery's priorities order checks within a queue.
        lists = [(self._q_for_pri(queue, step), queue) for queue in queues for step in self.priority_steps]
        ends = [f"{_NOTE_MIDDLE.decode()}{dumps(queue)}]" for _, queue in lists]
        keys = [self.unacked_key, self.unacked_index_key, *(name for name, _ in lists)]
        command = ("EVAL", _TAKE, len(keys), *keys, _NO_TAG, MAX_ENTRY_BYTES + 1, *ends)
        return b"".join(connection.pack_command(*command))

    def _brpop_read(self, **options: Any) -> bool:
        """Read the reply and deliver the message in it. Raises queue.Empty when there is none."""
        try:
            with self._waiting_after_refusal():
                taken = self.client.parse_response(self.client.connection, "EVAL", **options)
                if not taken:
                    self._pause()
                    raise Empty
                self._taken_at = monotonic()
                name, entry, length, server_time = taken
                queue = name.decode().rsplit(self.sep, 1)[0]
                payload = self._decoded(entry, int(length), float(server_time), queue)
                if payload is None:
                    return True
        finally:
            self._in_poll = None
        self.connection._deliver(payload, queue)  # noqa: SLF001 - as kombu does
        return True

    def _pause(self) -> None:
        """Poll again after a pause, for which the event loop wakes at its end and not at the next tick."""
        now = monotonic()
        seconds = min(max(ACTIVE_SECONDS, _PAUSE_SHARE * (now - self._taken_at)), IDLE_SECONDS)
        self._paused_until = now + seconds
        if loop := get_event_loop():
            loop.call_later(seconds, _wake)

    @contextmanager
    def _waiting_after_refusal(self) -> Iterator[None]:
        try:
            yield
        except redis.ResponseError as error:
            log.warning("queue_refused", error=str(error))
            self._paused_until = monotonic() + REFUSED_SECONDS
            raise Empty from error

    def _decoded(self, entry: bytes, length: int, server_time: float, queue: str) -> Any:
        """Return the message in an entry, or None for one that became a dead letter."""
        try:
            return decode(
                entry,
                queue,
                tag=self._tag,
                server_time=server_time,
                longest_wait_seconds=self.longest_wait_seconds,
                length=length,
            )
        except InvalidMessageError as error:
            dead_letter = dead_letter_of_entry(entry, queue, error, length=length)
        with self.conn_or_acquire() as client:
            unacknowledged = (self.unacked_key, self.unacked_index_key, self._tag)
            DeadLetters(client, stream=self.dead_letter_stream).write(
                dead_letter, unacknowledged=unacknowledged
            )
        return None


class Transport(stock.Transport):
    """kombu's Redis transport for this application alone; others in the same process keep kombu's own."""

    Channel = Channel

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Let the event loop run the channels, and wake it after each pause."""
        super().register_with_event_loop(connection, loop)
        loop.call_repeatedly(IDLE_SECONDS, _wake)


def _wake() -> None:
    """No-op: a timer that fires makes the event loop poll."""
