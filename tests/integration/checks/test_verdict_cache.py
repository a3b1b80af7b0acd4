"""An upload with the same bytes as an earlier one gets its verdict from the cache."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from jsonschema import Draft202012Validator
from pydantic import SecretStr
from structlog.testing import capture_logs

from tests.broken_broker import configured
from tests.conftest import NULL_WORKER, MakePicture, RunningWorker, StartWorker, StoreObject
from worker.broker.verdict_stream import Event
from worker.checks.verdict_cache import Judgement, VerdictCache
from worker.client import Client, NoVerdictError
from worker.contract.messages import PictureFacts, Verdict, ViewScore
from worker.embedded.startup import free_ports
from worker.embedded.valkey import Valkey
from worker.settings import Settings

SCHEMA = Path(__file__).parents[3] / "deploy" / "schemas" / "image-verdict-v1.json"


# Workers that cache, and dead-letter a check when the model fails once.
CACHING = {"DNF_VERDICT_CACHE_TTL_SECONDS": "600", "DNF_MAX_RETRIES": "0"}


@pytest.fixture(scope="module")
def submit(client: Client, store_object: StoreObject, make_picture: MakePicture) -> Callable[..., str]:
    """Provide a function that stores and submits a picture, and returns the check's id."""

    def submit(key: str, seed: int, **fields: Any) -> str:
        store_object(key, make_picture(seed, size=(70, 50)))
        return client.submit(client.settings.upload_bucket, key, **fields)

    return submit


@pytest.fixture(scope="module")
def first(worker_process: StartWorker, client: Client, submit: Callable[..., str]) -> Event:
    """Return the event of an upload that a model judged; its worker has ended."""
    check_id = submit("cache/first.jpg", 1, metadata={"user": 1})
    worker_process(CACHING, module=NULL_WORKER, burst=True)
    return client.wait_for(check_id)[check_id]


@pytest.fixture(scope="module")
def modelless(worker_process: StartWorker, first: Event) -> RunningWorker:  # noqa: ARG001 - fills the cache
    """Provide a worker with the same detector, whose model raises when it is called."""
    return worker_process({**CACHING, "NULL_RAISES": "yes"}, module=NULL_WORKER)


def _verdict(event: Event) -> Verdict:
    assert isinstance(event.envelope.data, Verdict)
    return event.envelope.data


def test_the_same_bytes_under_another_key_get_their_verdict_from_the_cache(
    modelless: RunningWorker, client: Client, submit: Callable[..., str], first: Event
) -> None:
    """The second check has an event of its own, with the score, facts and thumbnail of the first."""
    check_id = submit("cache/again.jpg", 1, metadata={"user": 2})
    event = client.wait_for(check_id)[check_id]
    Draft202012Validator(json.loads(SCHEMA.read_text())).validate(json.loads(event.raw))
    before, again = _verdict(first), _verdict(event)
    assert (before.cached, again.cached, again.batch_size) == (False, True, 0)
    assert (again.score, again.verdict, again.picture) == (before.score, before.verdict, before.picture)
    assert (again.views, again.strongest_view) == (before.views, before.strongest_view)
    assert len(before.views) == 1
    assert client.thumbnail(event) == client.thumbnail(first) is not None
    assert (again.metadata, event.envelope.subject[-9:]) == ({"user": 2}, "again.jpg")
    assert event.envelope.id != first.envelope.id
    assert again.durations_ms.keys() == {"queue_wait", "fetch", "cache", "total"}
    line = modelless.wait_for_event("image_checked", check_id=check_id)[0]
    assert line["cached"] is True


def test_other_bytes_are_a_cache_miss(
    modelless: RunningWorker, client: Client, submit: Callable[..., str]
) -> None:
    """The model is called; here it raises, and the check is dead-lettered."""
    check_id = submit("cache/other.jpg", 2)
    with pytest.raises(NoVerdictError) as failed:
        client.wait_for(check_id)
    assert "the model was called with 1 pictures" in failed.value.dead_letters[check_id].detail
    assert not modelless.wait_for_event("image_checked", count=0, check_id=check_id)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _judgement(data: bytes, settings: Settings) -> Judgement:
    facts = PictureFacts(sha256=_digest(data), width=70, height=50, format="JPEG", bytes=len(data))
    return Judgement(
        score=0.25,
        views=(ViewScore(x=0, y=0, width=64, height=50, score=0.2),),
        strongest_view=0,
        picture=facts,
        thumbnail=b"\xff\xd8\xff\xe0\x00\xfe",
        thumbnail_side=settings.thumbnail_side_pixels,
    )


@pytest.fixture
def cached(new_database: Callable[[], str]) -> Settings:
    """Return the settings of a cache in an empty database."""
    return Settings(redis_url=new_database(), verdict_cache_ttl_seconds=600)


def test_a_verdict_is_cached_by_content_model_and_policy_until_it_expires(cached: Settings) -> None:
    """Other content, another model and another policy are misses."""
    cache, other = VerdictCache.connect(cached, "a" * 64), VerdictCache.connect(cached, "b" * 64)
    judgement = _judgement(b"bytes", cached)
    cache.store(judgement, "default")
    assert cache.find(_digest(b"bytes"), "default") == judgement
    assert cache.find(_digest(b"other bytes"), "default") is None
    assert cache.find(_digest(b"bytes"), "strict") is None
    assert other.find(_digest(b"bytes"), "default") is None
    with redis.Redis.from_url(cached.redis_url.get_secret_value()) as broker:
        (key,) = broker.keys("*")
        assert 0 < broker.ttl(key) <= cached.verdict_cache_ttl_seconds
    cache.close()
    other.close()


def test_the_cache_is_off_by_default(cached: Settings) -> None:
    """With a time to live of 0 it stores nothing and connects to nothing."""
    off = VerdictCache.connect(cached.model_copy(update={"verdict_cache_ttl_seconds": 0}), "a" * 64)
    off.store(_judgement(b"bytes", cached), "default")
    assert not off.active
    with redis.Redis.from_url(cached.redis_url.get_secret_value()) as broker:
        assert broker.dbsize() == 0
    assert Settings.model_fields["verdict_cache_ttl_seconds"].default == 0


VALUES: dict[str, Callable[[Judgement], bytes | str]] = {
    "not JSON": lambda _: b"\x80\x04\x95pickled",
    "truncated": lambda judgement: judgement.model_dump_json()[:90],
    "another object": lambda _: '{"score": 0.1}',
    "a score above 1": lambda judgement: judgement.model_dump_json().replace("0.25", "1.25"),
    "a score of NaN": lambda judgement: judgement.model_dump_json().replace("0.25", "NaN"),
    "an unknown field": lambda judgement: judgement.model_dump_json().replace("{", '{"verdict":"real",', 1),
    "other bytes": lambda judgement: judgement.model_dump_json().replace(judgement.picture.sha256, "0" * 64),
    "too many pixels": lambda judgement: judgement.model_dump_json().replace("70", "70000000"),
    "no views": lambda judgement: judgement.model_copy(update={"views": ()}).model_dump_json(),
    "a view beyond the picture": lambda judgement: judgement.model_dump_json().replace(
        '"width":64', '"width":71'
    ),
    "a strongest view that is none": lambda judgement: judgement.model_dump_json().replace(
        '"strongest_view":0', '"strongest_view":1'
    ),
    "another thumbnail size": lambda judgement: judgement.model_dump_json().replace(":128", ":64"),
    "a thumbnail in another format": lambda judgement: judgement.model_copy(
        update={"thumbnail": b"<svg onload=alert(1)>"}
    ).model_dump_json(),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_malformed_or_forged_value_is_a_miss(cached: Settings, name: str) -> None:
    """It is logged in one line, and can be replaced."""
    cache = VerdictCache.connect(cached, "a" * 64)
    judgement = _judgement(b"bytes", cached)
    cache.store(judgement, "default")
    with redis.Redis.from_url(cached.redis_url.get_secret_value()) as broker:
        (key,) = broker.keys("*")
        broker.set(key, VALUES[name](judgement))
    with capture_logs() as lines:
        assert cache.find(_digest(b"bytes"), "default") is None
    (line,) = lines
    assert line["event"] in {"cached_verdict_unreadable", "cached_verdict_ignored"}
    cache.store(judgement, "default")
    assert cache.find(_digest(b"bytes"), "default") == judgement
    cache.close()


def test_an_unreachable_or_full_cache_is_a_miss(
    cached: Settings, valkey: Valkey, broker: redis.Redis
) -> None:
    """It raises nothing, and is not asked again for a while."""
    judgement = _judgement(b"bytes", cached)
    unreachable = f"redis://127.0.0.1:{free_ports(1)[0]}/0"
    with configured(broker, maxmemory="1"):
        for url in (unreachable, valkey.url):
            settings = cached.model_copy(update={"redis_url": SecretStr(url)})
            cache = VerdictCache.connect(settings, "a" * 64)
            with capture_logs() as lines:
                cache.store(judgement, "default")
                assert cache.find(_digest(b"bytes"), "default") is None
            assert [line["event"] for line in lines] == ["verdict_cache_unreachable"]
            cache.close()
