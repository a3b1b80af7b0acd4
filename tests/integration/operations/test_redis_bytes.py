"""The bytes of Redis memory that `dnf-worker plan` assumes, measured on a real Valkey.

The product's own code creates the data: the client enqueues, the transport takes, attempts are counted,
events are published with a thumbnail from the default bundle, messages are dead-lettered.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
import redis
from kombu import Consumer, Queue

from detector.detector import Detector
from detector.images.decode import decode
from detector.images.thumbnail import dnf_thumbnail
from worker.broker import keys
from worker.broker.app import create_app
from worker.broker.dead_letters import DeadLetters, dead_letter_of_check
from worker.broker.verdict_stream import VerdictStream
from worker.checks.attempts import Attempts
from worker.client import Client
from worker.contract.messages import (
    DEFAULT_QUEUE,
    ImageCheck,
    InvalidMessageError,
    Model,
    PictureFacts,
    Thumbnail,
    Verdict,
    VerdictEvent,
    ViewScore,
    event_id,
)
from worker.demo.samples import load_samples
from worker.embedded.valkey import Valkey
from worker.operations import capacity
from worker.settings import Settings

#: More than size classes of the allocator and half-filled tables do to a figure; far below a factor of two.
TOLERANCE = 0.2
CHECKS = 1000
#: Fewer, since they are large.
EVENTS = 300


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Provide a server for these tests only."""
    server = Valkey(tmp_path_factory.mktemp("bytes"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def settings(server: Valkey) -> Settings:
    """Return settings with that server."""
    return Settings(redis_url=server.url)  # type: ignore[arg-type]


class Memory:
    """The memory of the server's data, without buffers, logs and scripts."""

    def __init__(self, broker: redis.Redis) -> None:
        self._broker = broker

    def of_one(self, count: int) -> float:
        """Return the bytes per item of `count` items, the only data on the server.

        Counts all keys with their values, and the hash tables of the keys.
        """
        with self._broker.pipeline(transaction=False) as pipeline:
            for key in self._broker.scan_iter(count=1000):
                pipeline.memory_usage(key, samples=0)
            values = sum(pipeline.execute())
        statistics: Any = self._broker.memory_stats()
        return (values + sum(statistics["db.0"].values())) / count


@pytest.fixture
def memory(settings: Settings) -> Iterator[Memory]:
    """Provide the memory of the emptied server."""
    with redis.Redis.from_url(settings.redis_url.get_secret_value()) as broker:
        broker.flushall(asynchronous=False)
        yield Memory(broker)


def _check() -> ImageCheck:
    # Like a platform's checks: with a digest and some metadata.
    key = f"2026/11/24/{uuid4()}.jpg"
    return ImageCheck(
        bucket="uploads", key=key, sha256="a" * 64, metadata={"user": "u-17", "album": "holiday"}
    )


def test_waiting_and_unacknowledged_checks_take_the_planned_bytes(settings: Settings, memory: Memory) -> None:
    """Enqueued by the client, then taken by a consumer with the worker's transport."""
    app = create_app(settings)
    with Client(settings) as client:
        client.submit_many(_check() for _ in range(CHECKS))
    assert memory.of_one(CHECKS) == pytest.approx(capacity.WAITING_BYTES, rel=TOLERANCE)
    taken: list[object] = []
    with app.connection_for_read() as connection:
        consumer = Consumer(
            connection.channel(), [Queue(DEFAULT_QUEUE)], on_message=taken.append, accept=["json"]
        )
        with consumer:
            while len(taken) < CHECKS:
                connection.drain_events(timeout=10)
        assert memory.of_one(CHECKS) == pytest.approx(capacity.UNACKED_BYTES, rel=TOLERANCE)
    app.close()


@pytest.fixture(scope="module")
def thumbnail() -> bytes:
    """Return the thumbnail of a photograph from the default bundle."""
    detector = Detector.load("default", device="cpu", dtype="float32")
    photograph = next(sample for sample in load_samples() if sample.truth == "real")
    (finding,) = detector.examine([detector.prepare(decode(photograph.read()).pixels)])
    return dnf_thumbnail(finding.dnf)


def _event(check: ImageCheck, thumbnail: bytes) -> VerdictEvent:
    data = Verdict(
        check_id=check.check_id,
        policy=check.policy,
        durations_ms=dict.fromkeys(("queue_wait", "fetch", "decode", "dnf", "classify", "total"), 123.456),  # type: ignore[arg-type]
        attempt=1,
        worker="dnf-dnf-moderation-worker-6d5f7c9b8-x2x4z:7",
        metadata=check.metadata,
        verdict="review",
        score=0.123456789,
        # As many as the default bundle looks at, in a picture from a phone.
        views=tuple(
            ViewScore(x=x, y=y, width=128, height=128, score=round((x + y) / 7777, 4))
            for y in (0, 1448, 2896)
            for x in (0, 1952, 3904)
        ),
        strongest_view=8,
        thresholds={"review_from": 0.4, "generated_from": 0.6},  # type: ignore[arg-type]
        model=Model(name="dnf-small", version="2026.11", digest="b" * 64),
        picture=PictureFacts(sha256="a" * 64, width=4032, height=3024, format="JPEG", bytes=3_141_592),
        thumbnail=Thumbnail(width=128, height=128, sha256=hashlib.sha256(thumbnail).hexdigest()),
        batch_size=16,
    )
    identity = event_id(check.check_id, "b" * 64, check.policy)
    return VerdictEvent(
        id=identity, source="dnf-moderation", subject=f"s3://{check.bucket}/{check.key}", data=data
    )


def test_an_event_and_its_thumbnail_take_the_planned_bytes(
    settings: Settings, memory: Memory, server: Valkey, thumbnail: bytes
) -> None:
    """The event on the stream, the thumbnail under a key of its own; the check's record is another row."""
    verdicts = VerdictStream.connect(settings)
    events = [_event(_check(), thumbnail) for _ in range(EVENTS)]
    for event in events:
        assert verdicts.publish(event, message_id=str(uuid4()), thumbnail=thumbnail)
    with redis.Redis.from_url(server.url) as broker:
        broker.delete(*[keys.published(settings.verdict_stream, event.data.check_id) for event in events])
        both = memory.of_one(EVENTS)
        broker.delete(*[verdicts.thumbnail_key(event.id) for event in events])
    verdicts.close()
    alone = memory.of_one(EVENTS)
    assert alone == pytest.approx(capacity.EVENT_BYTES, rel=TOLERANCE)
    assert both - alone == pytest.approx(capacity.THUMBNAIL_BYTES, rel=TOLERANCE)


def test_the_record_of_a_published_check_takes_the_planned_bytes(
    settings: Settings, memory: Memory, server: Valkey
) -> None:
    """The event, compressed, and the attempt count remain when the event has left the stream."""
    verdicts = VerdictStream.connect(settings)
    with redis.Redis.from_url(server.url) as broker:
        attempts = Attempts(
            broker,
            deadline_seconds=settings.check_deadline_seconds,
            max_attempts=settings.max_attempts,
            ttl_seconds=settings.publish_once_ttl_seconds,
        )
        for _ in range(CHECKS):
            check = _check()
            with attempts.start(check.check_id):
                assert verdicts.publish(_event(check, b""), message_id=str(uuid4()))
        broker.delete(settings.verdict_stream)
    verdicts.close()
    assert memory.of_one(CHECKS) == pytest.approx(capacity.RECORD_BYTES, rel=TOLERANCE)


def test_a_dead_letter_takes_the_planned_bytes(settings: Settings, memory: Memory) -> None:
    """With the key by which a message has one dead letter."""
    dead_letters = DeadLetters.connect(settings)
    refused = InvalidMessageError("storage_unavailable", "The store did not answer within 10 seconds.")
    for _ in range(CHECKS):
        message = _check().model_dump(mode="json")
        dead_letters.write(dead_letter_of_check(json.dumps(message), DEFAULT_QUEUE, refused, attempts=21))
    dead_letters.close()
    assert memory.of_one(CHECKS) == pytest.approx(capacity.DEAD_LETTER_BYTES, rel=TOLERANCE)
