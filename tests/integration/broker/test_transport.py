"""The transport on a real Valkey: with kombu's own most of these fail."""

import json
import socket
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

from worker.broker.app import create_app
from worker.broker.dead_letters import DeadLetters
from worker.broker.transport import REFUSED_SECONDS, Transport
from worker.contract.envelope import MAX_ENTRY_BYTES, encode
from worker.contract.messages import QUEUES, DeadLetter
from worker.embedded.valkey import Valkey
from worker.settings import Settings

QUEUE = "image-checks"


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Provide a server of this module's own, whose limits may be changed."""
    server = Valkey(tmp_path_factory.mktemp("transport") / "valkey")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def broker(valkey: Valkey) -> Iterator[redis.Redis]:
    """Provide a client of the server, emptied."""
    with redis.Redis.from_url(valkey.url) as client:
        client.config_set("maxmemory", "0")
        client.flushall()
        yield client
        client.config_set("maxmemory", "0")


@pytest.fixture
def app(valkey: Valkey) -> Iterator[Celery]:
    """Provide the application on that server."""
    app = create_app(Settings(redis_url=valkey.url))
    yield app
    app.close()


@pytest.fixture
def dead_letters(valkey: Valkey, broker: redis.Redis) -> Iterator[Callable[[], list[DeadLetter]]]:
    """Provide a function that reads the dead letters."""
    settings = Settings(redis_url=valkey.url)
    assert broker.ping()
    stream = DeadLetters.connect(settings)
    yield lambda: [stored.dead_letter for stored in stream.read() if stored.dead_letter]
    stream.close()


class _Taker:
    """A consumer of the queues in this process, as a worker's."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.channel = connection.channel()
        self.taken: list[Any] = []
        self.consumer = Consumer(
            self.channel, [Queue(name) for name in QUEUES], on_message=self.taken.append, accept=["json"]
        )
        self.consumer.consume()

    def take(self, *, seconds: float = 1.0) -> None:
        """Take until all places are taken, the server says that there is no more, or the time is over."""
        paused, until = self._paused_until, monotonic() + seconds
        while self._paused_until == paused and self.channel.qos.can_consume() and monotonic() < until:
            with suppress(socket.timeout):
                self.connection.drain_events(timeout=0.05)

    @property
    def _paused_until(self) -> float:
        return float(self.channel._paused_until)  # noqa: SLF001 - nothing else tells that the server answered


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


def _waiting(broker: redis.Redis) -> int:
    return sum(int(broker.llen(name)) for name in QUEUES)  # type: ignore[arg-type]


def test_a_message_is_noted_before_it_leaves_its_queue(app: Celery, broker: redis.Redis) -> None:
    """A taken message stands in `unacked`, in kombu's own form, until it is acknowledged."""
    entry = encode([{"a": "ü"}], {}, QUEUE)
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


def test_an_answer_that_never_arrives_loses_no_message(
    app: Celery, broker: redis.Redis, wait_until: Callable[..., None]
) -> None:
    """The connection dies after the server gave the message away and before it was read: it is noted."""
    _push(broker, encode([{}], {}, QUEUE))
    with _taker(app) as taker:
        taker.connection.transport.cycle.on_poll_start()
        wait_until(lambda: _waiting(broker) == 0, "the server gave the message away")
        taker.channel.client.connection.disconnect()
        assert taker.taken == []
        assert broker.hlen("unacked") == 1


def test_an_answer_that_was_not_read_yet_is_read_before_a_worker_lets_go(
    app: Celery, broker: redis.Redis, wait_until: Callable[..., None]
) -> None:
    """The message in it is one of those that it holds, and goes back with them."""
    _push(broker, encode([{}], {}, QUEUE))
    with _taker(app) as taker:
        taker.channel.finish_taking()
        taker.connection.transport.cycle.on_poll_start()
        wait_until(lambda: _waiting(broker) == 0, "the server gave the message away")
        assert taker.channel.qos.unclaimed() == []
        taker.channel.finish_taking()
        (tag,) = taker.channel.qos.unclaimed()
        assert taker.channel.qos.requeue(tag)
        assert (broker.hlen("unacked"), _waiting(broker)) == (0, 1)
        taker.channel.finish_taking()


def test_a_server_without_memory_loses_no_message_and_ends_no_consumer(
    app: Celery, broker: redis.Redis
) -> None:
    """Reads and pops go on without memory, notes do not: the message stays until there is memory again.

    The consumer rests for a while after a refusal, and says so once for each time that it asked.
    """
    with _taker(app) as taker:
        taker.take(seconds=0.2)
        _push(broker, encode([{}], {}, QUEUE))
        broker.config_set("maxmemory", "1")
        with capture_logs() as lines:
            taker.take(seconds=0.5)
        assert [line["event"] for line in lines].count("queue_refused") == 1
        assert taker.taken == []
        assert _waiting(broker) == 1
        broker.config_set("maxmemory", "0")
        taker.take(seconds=2)
        assert len(taker.taken) == 1


def test_a_server_that_refuses_a_consumers_queues_is_a_lost_connection(
    app: Celery, broker: redis.Redis
) -> None:
    """A worker that connects while there is no memory rests and connects again, where other errors end it."""
    broker.config_set("maxmemory", "1")
    connection = app.connection_for_read()
    connection.transport.state.clear()  # what earlier connections of this process have declared
    began = monotonic()
    with pytest.raises(connection.connection_errors, match="used memory"):
        Consumer(connection.channel(), list(app.amqp.queues.values())).consume()
    assert monotonic() - began >= REFUSED_SECONDS
    broker.config_set("maxmemory", "0")
    connection.close()
    with _taker(app) as taker:
        _push(broker, encode([{}], {}, QUEUE))
        taker.take()
        assert len(taker.taken) == 1


def test_what_is_asked_of_a_closed_channel_is_a_lost_connection(app: Celery, broker: redis.Redis) -> None:
    """As Celery expects it of a broker that is away; anything else ends the worker."""
    assert broker.ping()
    with _taker(app) as taker:
        channel, errors = taker.channel, taker.connection.connection_errors
    with pytest.raises(errors):
        channel.qos.restore_by_tag("some tag")


def test_a_check_that_ends_after_its_connection_was_closed_settles_nothing(
    app: Celery, broker: redis.Redis
) -> None:
    """Its message went back with the connection, and whoever took it since keeps it."""
    _push(broker, encode([{}], {}, QUEUE))
    with _taker(app) as taker:
        taker.take()
    with _taker(app) as other:
        other.take()
        taker.taken[0].ack()
        assert (broker.hlen("unacked"), _waiting(broker)) == (1, 0)


@pytest.mark.parametrize("late", ["ack", "reject", "requeue", "requeue_early"])
def test_a_message_that_went_back_is_no_longer_ours_to_settle(
    app: Celery, broker: redis.Redis, late: str
) -> None:
    """Whoever holds it by then, under the same tag, keeps it, and nobody gets it a second time."""
    _push(broker, encode([{}], {}, QUEUE))
    with _taker(app) as giver, _taker(app) as other:
        giver.take()
        (message,) = giver.taken
        assert giver.channel.qos.requeue(message.delivery_tag)
        other.take()
        assert [taken.delivery_tag for taken in other.taken] == [message.delivery_tag]
        if late == "requeue_early":
            assert not giver.channel.qos.requeue(message.delivery_tag)
        else:
            getattr(message, late)()
        assert (broker.hlen("unacked"), broker.zcard("unacked_index"), _waiting(broker)) == (1, 1, 0)
        assert (giver.channel.qos.unclaimed(), other.channel.qos.unclaimed()) == ([], [message.delivery_tag])


def test_a_message_that_a_task_rejects_is_taken_again_before_the_queue_behind_it(
    app: Celery, broker: redis.Redis
) -> None:
    """As often as it is put back."""
    _push(broker, *[encode([number], {}, QUEUE) for number in range(3)])
    with _taker(app) as taker:
        taker.channel.basic_qos(prefetch_count=1)
        for _ in range(2):
            taker.take()
            taker.taken[-1].requeue()
        taker.take()
        assert [message.payload[0] for message in taker.taken] == [[0], [0], [0]]


def test_a_message_that_is_taken_again_while_it_is_requeued_is_held(app: Celery, broker: redis.Redis) -> None:
    """The thread that put it back hears so after the consumer has it again, and does not forget it then."""
    _push(broker, encode([{}], {}, QUEUE))
    with _taker(app) as taker, ThreadPoolExecutor(1) as threads:
        qos = taker.channel.qos
        taker.take()
        (tag,) = qos.unclaimed()
        requeued = threads.submit(qos.requeue, tag)
        while qos.unclaimed():
            pass
        with taker.channel.unacknowledged._changed:  # noqa: SLF001 - it waits here
            while len(taker.taken) < 2:
                taker.take(seconds=0.05)
        assert requeued.result()
        assert qos.unclaimed() == [tag]
        taker.taken[-1].ack()
        assert (broker.hlen("unacked"), _waiting(broker)) == (0, 0)


def test_a_message_is_settled_by_one_thread_of_many(app: Celery, broker: redis.Redis) -> None:
    """Half of the threads acknowledge and half put back: what went back is there once, the rest is gone."""
    _push(broker, *[encode([number], {}, QUEUE) for number in range(40)])
    with _taker(app) as taker, ThreadPoolExecutor(8) as threads:
        taker.take()
        qos, tags = taker.channel.qos, [message.delivery_tag for message in taker.taken]
        requeued = [threads.submit(settle, tag) for tag in tags for settle in (qos.requeue, qos.ack) * 2]
        went_back = sum(future.result() is True for future in requeued)
        assert qos.unclaimed() == []
        assert (broker.hlen("unacked"), broker.zcard("unacked_index"), _waiting(broker)) == (0, 0, went_back)


def test_a_message_whose_return_the_server_refuses_is_no_dead_letter(
    app: Celery, broker: redis.Redis, dead_letters: Callable[[], list[DeadLetter]]
) -> None:
    """Nothing is wrong with it: it stays noted, and the broker delivers it again after its time.

    Until then the worker may try once more; one that closes its connection meanwhile is not ended by it.
    """
    _push(broker, *[encode([number], {}, QUEUE) for number in range(2)])
    try:
        with _taker(app) as taker:
            taker.take()
            first, second = (message.delivery_tag for message in taker.taken)
            broker.execute_command("ACL", "SETUSER", "default", "-lpush", "-rpush")
            with pytest.raises(redis.ResponseError):
                taker.channel.qos.requeue(first)
            assert taker.channel.qos.unclaimed() == [first, second]
            taker.taken[0].requeue()
        assert (dead_letters(), broker.hlen("unacked")) == ([], 2)
        assert taker.channel.qos.unclaimed() == []
    finally:
        broker.execute_command("ACL", "SETUSER", "default", "+@all")


def test_a_message_whose_connection_breaks_as_it_is_requeued_is_there_once(
    app: Celery, broker: redis.Redis, dead_letters: Callable[[], list[DeadLetter]]
) -> None:
    """On its queue or still unacknowledged, and never a dead letter: nothing is wrong with it."""
    _push(broker, encode([{}], {}, QUEUE))
    with _taker(app) as taker:
        taker.take()
        broker.client_kill_filter(_type="normal", skipme=True)
        with suppress(redis.ConnectionError):
            taker.channel.qos.requeue(taker.taken[0].delivery_tag)
        assert (dead_letters(), broker.hlen("unacked") + _waiting(broker)) == ([], 1)  # type: ignore[operator]


def test_an_acknowledgement_on_its_way_is_waited_for(
    app: Celery, broker: redis.Redis, wait_until: Callable[..., None]
) -> None:
    """A process that ended before the server has it would leave a check behind that is done."""
    _push(broker, encode([{}], {}, QUEUE))
    with _taker(app) as taker, ThreadPoolExecutor(1) as threads:
        taker.take()
        qos = taker.channel.qos
        broker.client_pause(2000, all=False)
        settled = threads.submit(taker.taken[0].ack)
        wait_until(lambda: qos.unclaimed() == [], "it is on its way")
        assert not taker.channel.unacknowledged.wait_settled(0.01)
        assert not settled.done()
        broker.client_unpause()
        assert taker.channel.unacknowledged.wait_settled(30)
        assert broker.hlen("unacked") == 0


def test_what_was_taken_and_not_acknowledged_goes_back_when_the_connection_closes(
    app: Celery, broker: redis.Redis
) -> None:
    """It is the first to be taken again."""
    _push(broker, *[encode([number], {}, QUEUE) for number in range(3)])
    with _taker(app) as taker:
        taker.channel.basic_qos(prefetch_count=1)
        taker.take()
        first = [message.payload[0] for message in taker.taken]
    assert (broker.hlen("unacked"), _waiting(broker)) == (0, 3)
    with _taker(app) as taker:
        taker.take()
        assert [message.payload[0] for message in taker.taken] == [*first, [1], [2]] == [[0], [1], [2]]


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
        encode(["\ud800"], {}, QUEUE).replace(b'"retries": 0', b'"retries": 0, "argsrepr": "\\ud800"'),
    ],
    ids=lambda entry: repr(entry[:24]),
)
def test_an_entry_that_is_no_message_becomes_a_dead_letter_and_stops_nobody(
    app: Celery, broker: redis.Redis, dead_letters: Callable[[], list[DeadLetter]], entry: bytes
) -> None:
    """It leaves the queue for the dead letters, and the message behind it is taken."""
    _push(broker, entry, encode([{}], {}, QUEUE))
    with _taker(app) as taker:
        taker.take()
        assert len(taker.taken) == 1
        assert _waiting(broker) == 0
        assert broker.hlen("unacked") == 1
    (dead_letter,) = dead_letters()
    assert (dead_letter.reason, dead_letter.queue, dead_letter.attempts) == ("unreadable_entry", QUEUE, 0)


@pytest.mark.parametrize(
    ("entry", "place"),
    [
        (b"not json", "queue"),
        (json.dumps({**json.loads(encode([], {}, QUEUE)), "x": "a" * MAX_ENTRY_BYTES}).encode(), "queue"),
        (encode([], {}, QUEUE).replace(b"check_image", b"another_one"), "unacked"),
    ],
    ids=["unreadable", "too long", "unknown"],
)
def test_an_entry_whose_dead_letter_the_server_refuses_is_kept(
    app: Celery, broker: redis.Redis, dead_letters: Callable[[], list[DeadLetter]], entry: bytes, place: str
) -> None:
    """Where it was, or noted if it can be put back; it has its letter once the server takes that."""
    _push(broker, entry)
    with _taker(app) as taker:
        broker.execute_command("ACL", "SETUSER", "default", "-xadd")
        try:
            taker.take()
            taker.channel.qos.restore_visible()
        finally:
            broker.execute_command("ACL", "SETUSER", "default", "+@all")
        assert dead_letters() == []
        assert (_waiting(broker), broker.hlen("unacked")) == ((1, 0) if place == "queue" else (0, 1))
    with _taker(app) as taker:
        for tag in broker.hkeys("unacked"):  # type: ignore[union-attr]
            broker.zadd("unacked_index", {tag: 1})
        taker.channel.qos.restore_visible()
        taker.take()
        assert (_waiting(broker), broker.hlen("unacked"), len(dead_letters())) == (0, 0, 1)


@pytest.mark.parametrize(("how", "command"), [("ack", "zrem"), ("requeue", "rpush")])
def test_a_message_that_could_not_be_acknowledged_takes_no_place(
    app: Celery, broker: redis.Redis, how: str, command: str
) -> None:
    """A consumer with one place lives on and takes the next message; the first comes again in its time."""
    _push(broker, encode(["first"], {}, QUEUE), encode(["second"], {}, QUEUE))
    with _taker(app) as taker:
        taker.channel.basic_qos(prefetch_count=1)
        taker.take()
        broker.execute_command("ACL", "SETUSER", "default", f"-{command}")
        try:
            taker.taken[0].ack() if how == "ack" else taker.taken[0].requeue()
        finally:
            broker.execute_command("ACL", "SETUSER", "default", f"+{command}")
        taker.take()
        assert [message.payload[0] for message in taker.taken] == [["first"], ["second"]]
        assert broker.hlen("unacked") == 2


def _note(broker: redis.Redis, tag: str, entry: bytes, queue: str = QUEUE) -> None:
    """Note an entry as unacknowledged since 1970."""
    broker.hset("unacked", tag, b'[%b,"","%b"]' % (entry, queue.encode()))
    broker.zadd("unacked_index", {tag: 1})


@pytest.mark.parametrize(
    "entry",
    [
        encode([{}], {}, QUEUE).replace(b'"retries": 0', b'"retries": {"__type__": "x", "__value__": 1}'),
        encode([{}], {}, QUEUE).replace(b'"priority": 0', b'"priority": Infinity'),
        encode([{}], {}, QUEUE).replace(b'{"exchange": "", "routing_key": "image-checks"}', b"null"),
        b"[" * 5000 + b"]" * 5000,
        b'\xff\x00,"","another"] [',
    ],
    ids=["a type hook", "infinite priority", "no delivery info", "nested", "bytes"],
)
def test_whatever_was_taken_is_requeued_byte_for_byte(app: Celery, broker: redis.Redis, entry: bytes) -> None:
    """After its visibility timeout an unacknowledged entry is on its queue again, and so are the others."""
    good = encode([{}], {}, QUEUE)
    _note(broker, "a", entry)
    _note(broker, "b", good)
    with _taker(app) as taker:
        taker.channel.qos.restore_visible()
        assert broker.lrange(QUEUE, 0, -1) == [entry, good]
        assert (broker.hlen("unacked"), broker.zcard("unacked_index")) == (0, 0)


def test_an_unreadable_note_becomes_a_dead_letter_when_it_is_taken_again(
    app: Celery, broker: redis.Redis, dead_letters: Callable[[], list[DeadLetter]]
) -> None:
    """The message behind it is taken."""
    bad = encode([{}], {}, QUEUE).decode().replace('"retries": 0', '"retries": {"__type__": "x"}')
    _note(broker, "bad", bad.encode())
    _note(broker, "good", encode([{}], {}, QUEUE))
    with _taker(app) as taker:
        taker.channel.qos.restore_visible()
        taker.take()
        assert (len(taker.taken), _waiting(broker)) == (1, 0)
    (dead_letter,) = dead_letters()
    assert (dead_letter.message, dead_letter.queue) == (bad, QUEUE)


def test_a_message_of_another_application_stays_where_it_is(app: Celery, broker: redis.Redis) -> None:
    """Its queue is not ours to write to."""
    _note(broker, "theirs", encode([{}], {}, "mails"), queue="mails")
    with _taker(app) as taker:
        taker.channel.qos.restore_visible()
        assert (broker.hlen("unacked"), broker.llen("mails")) == (1, 0)


def test_messages_are_requeued_once_by_many_sweeps_at_once(app: Celery, broker: redis.Redis) -> None:
    """Eight workers find the same three hundred messages expired."""
    for number in range(300):
        _note(broker, f"tag-{number}", encode([number], {}, QUEUE))
    with ExitStack() as stack, ThreadPoolExecutor(8) as threads:
        takers = [stack.enter_context(_taker(app)) for _ in range(8)]
        list(threads.map(lambda taker: taker.channel.qos.restore_visible(), takers))
        assert (broker.hlen("unacked"), _waiting(broker)) == (0, 300)


def test_a_message_within_its_visibility_timeout_is_left_alone(app: Celery, broker: redis.Redis) -> None:
    """The server's clock decides, not the worker's."""
    _push(broker, encode([{}], {}, QUEUE))
    with _taker(app) as taker, _taker(app) as other:
        taker.take()
        other.channel.qos.restore_visible()
        assert (broker.hlen("unacked"), _waiting(broker)) == (1, 0)


def test_urgent_messages_are_taken_first(app: Celery, broker: redis.Redis) -> None:
    """Whatever waits in the other queues."""
    for queue in ("image-checks.bulk", "image-checks", "image-checks.urgent"):
        _push(broker, *[encode([queue], {}, queue)] * 2, queue=queue)
    with _taker(app) as taker:
        taker.take()
        order = [message.delivery_info["routing_key"] for message in taker.taken]
    assert order == ["image-checks.urgent"] * 2 + ["image-checks"] * 2 + ["image-checks.bulk"] * 2


def test_other_applications_in_the_process_keep_kombus_transport(app: Celery, valkey: Valkey) -> None:
    """A platform with tasks of its own imports the client and sees no difference."""
    other = Celery("other", broker=valkey.url)
    assert type(app.connection_for_read().transport) is Transport
    assert type(other.connection_for_read().transport) is StockTransport
    other.close()
