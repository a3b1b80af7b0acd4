"""The transport on a real Valkey; with kombu's own most of these tests fail."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from time import monotonic, time
from typing import Any

import pytest
import redis
from celery import Celery
from kombu import Connection, Consumer, Queue
from kombu.transport.redis import Transport as StockTransport
from structlog.testing import capture_logs

from tests.broken_broker import commands_denied, configured
from tests.conftest import PATIENCE
from worker.broker.app import create_app
from worker.broker.dead_letters import DeadLetters
from worker.broker.transport import REFUSED_SECONDS, Transport
from worker.contract.envelope import MAX_ENTRY_BYTES, encode
from worker.contract.messages import QUEUES, DeadLetter
from worker.embedded.valkey import Valkey
from worker.settings import Settings

QUEUE = "image-checks"


@pytest.fixture
def app(valkey: Valkey) -> Iterator[Celery]:
    """Provide the application on the module's server."""
    app = create_app(Settings(redis_url=valkey.url))
    yield app
    app.close()


@pytest.fixture
def dead_letters(valkey: Valkey) -> Iterator[Callable[[], list[DeadLetter]]]:
    """Provide a function that reads the dead letters."""
    stream = DeadLetters.connect(Settings(redis_url=valkey.url))
    yield lambda: [stored.dead_letter for stored in stream.read() if stored.dead_letter]
    stream.close()


class _Taker:
    """A consumer of the queues in this process, like a worker's."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.channel = connection.channel()
        self.taken: list[Any] = []
        self.consumer = Consumer(
            self.channel, [Queue(name) for name in QUEUES], on_message=self.taken.append, accept=["json"]
        )
        self.consumer.consume()

    def poll(self, until: Callable[[], object] = lambda: False, *, seconds: float) -> bool:
        """Poll the queues until a condition holds; return whether it did within `seconds`."""
        deadline = monotonic() + seconds
        while not (held := bool(until())) and monotonic() < deadline:
            with suppress(socket.timeout):
                self.connection.drain_events(timeout=0.05)
        return held

    def take(self, count: int = 1) -> None:
        """Take `count` more messages."""
        expected = len(self.taken) + count
        assert self.poll(lambda: len(self.taken) >= expected, seconds=10 * PATIENCE), self.taken


@contextmanager
def _taker(app: Celery) -> Iterator[_Taker]:
    connection = app.connection_for_read()
    try:
        yield _Taker(connection)
    finally:
        with suppress(*connection.connection_errors):
            connection.close()


def _push(broker: redis.Redis, *entries: bytes, queue: str = QUEUE) -> None:
    for entry in entries:
        broker.lpush(queue, entry)


def _number(message: Any) -> Any:
    return json.loads(message.payload[0][0])["n"]


def _waiting(broker: redis.Redis) -> int:
    return sum(int(broker.llen(name)) for name in QUEUES)  # type: ignore[arg-type]


def test_a_message_that_is_taken_is_in_unacked_until_it_is_acknowledged(
    app: Celery, broker: redis.Redis
) -> None:
    """The server notes it in `unacked`, in kombu's own form, in the step that removes it from its queue."""
    entry = encode({"a": "ü"}, QUEUE)
    _push(broker, entry)
    with _taker(app) as taker:
        taker.take()
        (message,) = taker.taken
        assert _waiting(broker) == 0
        noted = broker.hget("unacked", message.delivery_tag)
        assert json.loads(noted) == [json.loads(entry), "", QUEUE]  # type: ignore[arg-type]
        assert broker.zscore("unacked_index", message.delivery_tag) == pytest.approx(time(), abs=60)
        message.ack()
    assert (broker.hlen("unacked"), broker.zcard("unacked_index"), _waiting(broker)) == (0, 0, 0)


def test_a_reply_that_never_arrives_loses_no_message(
    app: Celery, broker: redis.Redis, wait_until: Callable[..., None]
) -> None:
    """The connection is lost after the server sent the message and before it was read: it is in `unacked`."""
    _push(broker, encode({}, QUEUE))
    with _taker(app) as taker:
        taker.connection.transport.cycle.on_poll_start()
        wait_until(lambda: _waiting(broker) == 0, "the server sent the message")
        taker.channel.client.connection.disconnect()
        assert taker.taken == []
        assert broker.hlen("unacked") == 1


def test_finish_taking_reads_a_reply_that_is_still_due(
    app: Celery, broker: redis.Redis, wait_until: Callable[..., None]
) -> None:
    """The message in it is unacknowledged, like the others, and can be requeued."""
    _push(broker, encode({}, QUEUE))
    with _taker(app) as taker:
        taker.channel.finish_taking()
        taker.connection.transport.cycle.on_poll_start()
        wait_until(lambda: _waiting(broker) == 0, "the server sent the message")
        assert taker.channel.qos.unclaimed() == []
        taker.channel.finish_taking()
        (tag,) = taker.channel.qos.unclaimed()
        assert taker.channel.qos.requeue(tag)
        assert (broker.hlen("unacked"), _waiting(broker)) == (0, 1)
        taker.channel.finish_taking()


def test_a_server_without_memory_loses_no_message_and_ends_no_consumer(
    app: Celery, broker: redis.Redis
) -> None:
    """Without memory the server can pop a message and not note it: the message stays on its queue.

    After each refusal the consumer logs one line and pauses.
    """
    with _taker(app) as taker:
        taker.poll(seconds=0.1)
        _push(broker, encode({}, QUEUE))
        with configured(broker, maxmemory="1"), capture_logs() as lines:
            taker.poll(seconds=REFUSED_SECONDS / 2)
            assert [line["event"] for line in lines] == ["queue_refused"]
            assert (taker.taken, _waiting(broker)) == ([], 1)
        taker.take()


def test_a_server_that_refuses_to_declare_queues_is_a_lost_connection(
    app: Celery, broker: redis.Redis
) -> None:
    """Celery connects again after a lost connection; after any other error the worker would end."""
    connection = app.connection_for_read()
    connection.transport.state.clear()  # forgets the queues that this process has declared already
    began = monotonic()
    with (
        configured(broker, maxmemory="1"),
        pytest.raises(connection.connection_errors, match="used memory"),
    ):
        Consumer(connection.channel(), list(app.amqp.queues.values())).consume()
    assert monotonic() - began >= REFUSED_SECONDS
    connection.close()
    with _taker(app) as taker:
        _push(broker, encode({}, QUEUE))
        taker.take()


def test_a_command_on_a_closed_channel_is_a_lost_connection(app: Celery) -> None:
    """Celery connects again after a lost connection; after any other error the worker would end."""
    with _taker(app) as taker:
        channel, errors = taker.channel, taker.connection.connection_errors
    with pytest.raises(errors):
        channel.qos.restore_by_tag("some tag")


def test_an_acknowledgement_after_the_connection_was_closed_has_no_effect(
    app: Celery, broker: redis.Redis
) -> None:
    """The message was requeued with the connection; a consumer that took it since keeps it."""
    _push(broker, encode({}, QUEUE))
    with _taker(app) as taker:
        taker.take()
    with _taker(app) as other:
        other.take()
        taker.taken[0].ack()
        assert (broker.hlen("unacked"), _waiting(broker)) == (1, 0)


@pytest.mark.parametrize("late", ["ack", "reject", "requeue", "requeue_early"])
def test_a_requeued_message_can_no_longer_be_acknowledged_or_requeued(
    app: Celery, broker: redis.Redis, late: str
) -> None:
    """A consumer that took it since, under another tag, keeps it; it is not queued a second time."""
    _push(broker, encode({}, QUEUE))
    with _taker(app) as first, _taker(app) as other:
        first.take()
        (message,) = first.taken
        assert first.channel.qos.requeue(message.delivery_tag)
        other.take()
        (other_tag,) = (taken.delivery_tag for taken in other.taken)
        assert other_tag != message.delivery_tag
        if late == "requeue_early":
            assert not first.channel.qos.requeue(message.delivery_tag)
        else:
            getattr(message, late)()
        assert (broker.hlen("unacked"), broker.zcard("unacked_index"), _waiting(broker)) == (1, 1, 0)
        assert (first.channel.qos.unclaimed(), other.channel.qos.unclaimed()) == ([], [other_tag])


def test_a_requeued_message_is_taken_next(app: Celery, broker: redis.Redis) -> None:
    """Every time that it is requeued, before the messages behind it."""
    _push(broker, *[encode({"n": number}, QUEUE) for number in range(3)])
    with _taker(app) as taker:
        taker.channel.basic_qos(prefetch_count=1)
        for _ in range(2):
            taker.take()
            taker.taken[-1].requeue()
        taker.take()
        assert [_number(message) for message in taker.taken] == [0, 0, 0]


def test_a_message_that_is_taken_again_while_it_is_requeued_is_unacknowledged(
    app: Celery, broker: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that requeued it learns of that last, and must not forget the message taken since."""
    _push(broker, encode({}, QUEUE))
    with _taker(app) as taker, ThreadPoolExecutor(1) as threads:
        qos, taken_again = taker.channel.qos, threading.Event()
        taker.take()
        (tag,) = qos.unclaimed()
        requeue = qos.restore_by_tag

        def requeue_slowly(tag: str) -> None:
            requeue(tag)
            assert taken_again.wait(10 * PATIENCE)

        monkeypatch.setattr(qos, "restore_by_tag", requeue_slowly)
        requeued = threads.submit(qos.requeue, tag)
        taker.take()
        taken_again.set()
        assert requeued.result()
        assert qos.unclaimed() == [taker.taken[-1].delivery_tag] != [tag]
        taker.taken[-1].ack()
        assert (broker.hlen("unacked"), _waiting(broker)) == (0, 0)


def test_of_many_threads_one_settles_a_message(app: Celery, broker: redis.Redis) -> None:
    """Half of them acknowledge and half requeue: a requeued message is queued once, the others are gone."""
    _push(broker, *[encode({"n": number}, QUEUE) for number in range(40)])
    with _taker(app) as taker, ThreadPoolExecutor(8) as threads:
        taker.take(40)
        qos, tags = taker.channel.qos, [message.delivery_tag for message in taker.taken]
        settled = [threads.submit(settle, tag) for tag in tags for settle in (qos.requeue, qos.ack) * 2]
        requeued = sum(future.result() is True for future in settled)
        assert qos.unclaimed() == []
        assert (broker.hlen("unacked"), broker.zcard("unacked_index"), _waiting(broker)) == (0, 0, requeued)


def test_a_message_that_the_server_refuses_to_requeue_is_no_dead_letter(
    app: Celery, broker: redis.Redis, dead_letters: Callable[[], list[DeadLetter]]
) -> None:
    """It stays in `unacked`, and the broker delivers it again after the visibility timeout.

    Until then it can be requeued again; closing the connection raises nothing.
    """
    _push(broker, *[encode({"n": number}, QUEUE) for number in range(2)])
    with commands_denied(broker, "lpush", "rpush"):
        with _taker(app) as taker:
            taker.take(2)
            first, second = (message.delivery_tag for message in taker.taken)
            with pytest.raises(redis.ResponseError):
                taker.channel.qos.requeue(first)
            assert taker.channel.qos.unclaimed() == [first, second]
            taker.taken[0].requeue()
        assert (dead_letters(), broker.hlen("unacked")) == ([], 2)
        assert taker.channel.qos.unclaimed() == []


def test_a_message_whose_connection_is_lost_while_it_is_requeued_exists_once(
    app: Celery, broker: redis.Redis, dead_letters: Callable[[], list[DeadLetter]]
) -> None:
    """It is on its queue or in `unacked`, and no dead letter."""
    _push(broker, encode({}, QUEUE))
    with _taker(app) as taker:
        taker.take()
        broker.client_kill_filter(_type="normal", skipme=True)
        with suppress(redis.ConnectionError):
            taker.channel.qos.requeue(taker.taken[0].delivery_tag)
        assert (dead_letters(), broker.hlen("unacked") + _waiting(broker)) == ([], 1)  # type: ignore[operator]


def test_an_acknowledgement_in_progress_is_waited_for(
    app: Celery, broker: redis.Redis, wait_until: Callable[..., None]
) -> None:
    """If the process ended before, the check would be delivered again although it is done."""
    _push(broker, encode({}, QUEUE))
    with _taker(app) as taker, ThreadPoolExecutor(1) as threads:
        taker.take()
        qos = taker.channel.qos
        broker.client_pause(2000, all=False)
        acknowledged = threads.submit(taker.taken[0].ack)
        wait_until(lambda: qos.unclaimed() == [], "the acknowledgement is in progress")
        assert not taker.channel.unacknowledged.wait_settled(0.01)
        assert not acknowledged.done()
        broker.client_unpause()
        assert taker.channel.unacknowledged.wait_settled(30)
        assert broker.hlen("unacked") == 0


def test_an_unacknowledged_message_is_requeued_when_the_connection_closes(
    app: Celery, broker: redis.Redis
) -> None:
    """It is taken next."""
    _push(broker, *[encode({"n": number}, QUEUE) for number in range(3)])
    with _taker(app) as taker:
        taker.channel.basic_qos(prefetch_count=1)
        taker.take()
        first = [_number(message) for message in taker.taken]
    assert (broker.hlen("unacked"), _waiting(broker)) == (0, 3)
    with _taker(app) as taker:
        taker.take(3)
        assert [_number(message) for message in taker.taken] == [*first, 1, 2] == [0, 1, 2]


@pytest.mark.parametrize(
    "entry",
    [
        b"",
        b"not json",
        b"\xff\xfe",
        b"[1, 2]",
        b"null",
        b"{}",
        b'{"headers": {}, "properties": {}}',
        b'{"headers": null, "properties": {"delivery_tag": "t"}}',
        b'{"headers": {"task": ["x"]}, "properties": {"delivery_tag": "t"}}',
        b'{"headers": {"task": "x"}, "properties": {"delivery_tag": "t", "body_encoding": "x"}, "body": "x"}',
        b"[" * 5000 + b"]" * 5000,
        b'"' + b"a" * MAX_ENTRY_BYTES + b'"',
        encode({}, QUEUE).replace(b'"retries": 0', b'"retries": "0"'),
    ],
    ids=lambda entry: repr(entry[:24]),
)
def test_an_unreadable_entry_is_dead_lettered_and_the_message_behind_it_taken(
    app: Celery, broker: redis.Redis, dead_letters: Callable[[], list[DeadLetter]], entry: bytes
) -> None:
    """Whatever its bytes are; it is removed from the queue."""
    _push(broker, entry, encode({}, QUEUE))
    with _taker(app) as taker:
        taker.take()
        assert _waiting(broker) == 0
        assert broker.hlen("unacked") == 1
    (dead_letter,) = dead_letters()
    assert (dead_letter.reason, dead_letter.queue, dead_letter.attempts) == ("unreadable_entry", QUEUE, 0)


@pytest.mark.parametrize(
    "entry",
    [
        b"not json",
        json.dumps({**json.loads(encode({}, QUEUE)), "x": "a" * MAX_ENTRY_BYTES}).encode(),
        encode({}, QUEUE).replace(b"check_image", b"another_one"),
    ],
    ids=["unreadable", "too long", "unknown"],
)
def test_an_entry_is_kept_while_the_server_refuses_its_dead_letter(
    app: Celery, broker: redis.Redis, dead_letters: Callable[[], list[DeadLetter]], entry: bytes
) -> None:
    """It stays in `unacked` until its dead letter is written."""
    _push(broker, entry)
    with _taker(app) as taker:
        with commands_denied(broker, "xadd"), capture_logs() as lines:
            assert taker.poll(lambda: lines, seconds=10 * PATIENCE)
            taker.channel.qos.restore_visible()
        assert dead_letters() == []
        assert (_waiting(broker), broker.hlen("unacked")) == (0, 1)
    with _taker(app) as taker:
        for tag in broker.hkeys("unacked"):  # type: ignore[union-attr]
            broker.zadd("unacked_index", {tag: 1})
        taker.channel.qos.restore_visible()
        assert taker.poll(dead_letters, seconds=10 * PATIENCE)
        assert taker.poll(lambda: not _waiting(broker) and not broker.hlen("unacked"), seconds=10 * PATIENCE)
        assert len(dead_letters()) == 1


@pytest.mark.parametrize(("how", "command"), [("ack", "zrem"), ("requeue", "rpush")])
def test_a_refused_acknowledgement_does_not_count_against_the_prefetch_limit(
    app: Celery, broker: redis.Redis, how: str, command: str
) -> None:
    """With a limit of one the next message is taken; the first is delivered again later."""
    _push(broker, encode({"n": "first"}, QUEUE), encode({"n": "second"}, QUEUE))
    with _taker(app) as taker:
        taker.channel.basic_qos(prefetch_count=1)
        taker.take()
        with commands_denied(broker, command):
            getattr(taker.taken[0], how)()
        taker.take()
        assert [_number(message) for message in taker.taken] == ["first", "second"]
        assert broker.hlen("unacked") == 2


def _note(broker: redis.Redis, tag: str, entry: bytes, queue: str = QUEUE) -> None:
    """Note an entry in `unacked`, taken in 1970."""
    broker.hset("unacked", tag, b'[%b,"","%b"]' % (entry, queue.encode()))
    broker.zadd("unacked_index", {tag: 1})


@pytest.mark.parametrize(
    "entry",
    [
        encode({}, QUEUE).replace(b'"retries": 0', b'"retries": {"__type__": "x", "__value__": 1}'),
        encode({}, QUEUE).replace(b'"priority": 0', b'"priority": Infinity'),
        encode({}, QUEUE).replace(b'{"exchange": "", "routing_key": "image-checks"}', b"null"),
        b"[" * 5000 + b"]" * 5000,
        b'\xff\x00,"","another"] [',
    ],
    ids=["a type hook", "infinite priority", "no delivery info", "nested", "bytes"],
)
def test_an_expired_entry_is_requeued_byte_for_byte(app: Celery, broker: redis.Redis, entry: bytes) -> None:
    """Whatever its bytes are, and the entries noted after it too."""
    good = encode({}, QUEUE)
    _note(broker, "a", entry)
    _note(broker, "b", good)
    with _taker(app) as taker:
        taker.channel.qos.restore_visible()
        assert broker.lrange(QUEUE, 0, -1) == [entry, good]
        assert (broker.hlen("unacked"), broker.zcard("unacked_index")) == (0, 0)


def test_an_unreadable_entry_that_expired_is_dead_lettered(
    app: Celery, broker: redis.Redis, dead_letters: Callable[[], list[DeadLetter]]
) -> None:
    """The message noted after it is taken."""
    bad = encode({}, QUEUE).decode().replace('"retries": 0', '"retries": {"__type__": "x"}')
    _note(broker, "bad", bad.encode())
    _note(broker, "good", encode({}, QUEUE))
    with _taker(app) as taker:
        taker.channel.qos.restore_visible()
        taker.take()
        assert taker.poll(dead_letters, seconds=10 * PATIENCE)
        assert _waiting(broker) == 0
    (dead_letter,) = dead_letters()
    assert (dead_letter.message, dead_letter.queue) == (bad, QUEUE)


def test_an_expired_message_of_another_application_is_left_in_unacked(
    app: Celery, broker: redis.Redis
) -> None:
    """The transport writes to its own queues only."""
    _note(broker, "theirs", encode({}, "mails"), queue="mails")
    with _taker(app) as taker:
        taker.channel.qos.restore_visible()
        assert (broker.hlen("unacked"), broker.llen("mails")) == (1, 0)


def test_eight_concurrent_sweeps_requeue_each_expired_message_once(app: Celery, broker: redis.Redis) -> None:
    """Eight workers find the same 300 messages."""
    for number in range(300):
        _note(broker, f"tag-{number}", encode({"n": number}, QUEUE))
    with ExitStack() as stack, ThreadPoolExecutor(8) as threads:
        takers = [stack.enter_context(_taker(app)) for _ in range(8)]
        list(threads.map(lambda taker: taker.channel.qos.restore_visible(), takers))
        assert (broker.hlen("unacked"), _waiting(broker)) == (0, 300)


def test_a_message_within_its_visibility_timeout_is_not_requeued(app: Celery, broker: redis.Redis) -> None:
    """The timeout is measured by the server's clock."""
    _push(broker, encode({}, QUEUE))
    with _taker(app) as taker, _taker(app) as other:
        taker.take()
        other.channel.qos.restore_visible()
        assert (broker.hlen("unacked"), _waiting(broker)) == (1, 0)


def test_messages_that_share_a_producers_tag_are_all_taken(app: Celery, broker: redis.Redis) -> None:
    """Each has a tag of the transport's own, and is acknowledged by itself."""
    shared = encode({"n": 1}, QUEUE)
    _push(broker, *[shared] * 12)
    with _taker(app) as taker:
        taker.take(12)
        assert (len({message.delivery_tag for message in taker.taken}), broker.hlen("unacked")) == (12, 12)
        taker.taken[0].ack()
        assert broker.hlen("unacked") == 11


def test_of_an_oversized_entry_a_part_travels(
    app: Celery, broker: redis.Redis, dead_letters: Callable[[], list[DeadLetter]]
) -> None:
    """The server keeps the other forty megabytes to itself, and its dead letter is truncated."""
    entry = b'{"body": "' + b"a" * (40 << 20) + b'"}'
    _push(broker, entry)
    with _taker(app) as taker:
        sent = broker.info("stats")["total_net_output_bytes"]
        assert taker.poll(dead_letters, seconds=10 * PATIENCE)
        assert broker.info("stats")["total_net_output_bytes"] - sent < 4 * MAX_ENTRY_BYTES
    (dead_letter,) = dead_letters()
    assert (dead_letter.truncated, dead_letter.reason) == (True, "unreadable_entry")
    assert f"has {len(entry)} bytes" in dead_letter.detail
    assert broker.hlen("unacked") == 0


def test_a_paused_worker_takes_nothing(app: Celery, broker: redis.Redis) -> None:
    """Until it is resumed; what it has taken stays its own."""
    _push(broker, *[encode({"n": number}, QUEUE) for number in range(3)])
    with _taker(app) as taker:
        taker.channel.unacknowledged.pause(paused=True)
        taker.poll(seconds=0.2)
        assert (taker.taken, _waiting(broker)) == ([], 3)
        taker.channel.unacknowledged.pause(paused=False)
        taker.take(3)


def test_urgent_messages_are_taken_first(app: Celery, broker: redis.Redis) -> None:
    """Then ordinary, then bulk messages."""
    for queue in ("image-checks.bulk", "image-checks", "image-checks.urgent"):
        _push(broker, *[encode({"n": queue}, queue)] * 2, queue=queue)
    with _taker(app) as taker:
        taker.take(6)
        order = [message.delivery_info["routing_key"] for message in taker.taken]
    assert order == ["image-checks.urgent"] * 2 + ["image-checks"] * 2 + ["image-checks.bulk"] * 2


def test_a_priority_of_celery_orders_checks_within_their_queue(app: Celery, broker: redis.Redis) -> None:
    """It puts them into a list of their own, which is read before the next queue."""
    for name in ("image-checks.bulk", "image-checks.urgent\x06\x169", "image-checks.urgent"):
        queue = name.partition("\x06")[0]
        _push(broker, encode({"n": name}, queue), queue=name)
    with _taker(app) as taker:
        taker.take(3)
        assert [_number(message) for message in taker.taken] == [
            "image-checks.urgent",
            "image-checks.urgent\x06\x169",
            "image-checks.bulk",
        ]


def test_other_applications_in_the_process_keep_kombus_transport(app: Celery, valkey: Valkey) -> None:
    """A platform may import the client and run Celery tasks of its own."""
    other = Celery("other", broker=valkey.url)
    assert type(app.connection_for_read().transport) is Transport
    assert type(other.connection_for_read().transport) is StockTransport
    other.close()
