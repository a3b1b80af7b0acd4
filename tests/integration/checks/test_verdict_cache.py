"""An upload that repeats another one byte for byte has its verdict without the model."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import redis
from jsonschema import Draft202012Validator
from pydantic import SecretStr
from structlog.testing import capture_logs

from tests.conftest import RunningWorker
from worker.broker.verdict_stream import Event
from worker.checks.verdict_cache import Judgement, VerdictCache
from worker.client import Client, NoVerdictError
from worker.contract.messages import PictureFacts, Verdict
from worker.embedded.services import EmbeddedServices
from worker.embedded.startup import free_ports
from worker.embedded.valkey import Valkey
from worker.settings import Settings

SCHEMA = Path(__file__).parents[3] / "deploy" / "schemas" / "image-verdict-v1.json"


def _settings(environment: Mapping[str, str]) -> Settings:
    values: dict[str, Any] = {name.removeprefix("DNF_").lower(): value for name, value in environment.items()}
    return Settings(**values)


@pytest.fixture(scope="module")
def caching(service_environment: dict[str, str]) -> dict[str, str]:
    """Return the DNF_ variables of workers that cache, and give up on a model at once."""
    return {**service_environment, "DNF_VERDICT_CACHE_TTL_SECONDS": "600", "DNF_MAX_RETRIES": "0"}


@pytest.fixture(scope="module")
def client(caching: dict[str, str]) -> Iterator[Client]:
    """Provide a client of this module's workers."""
    with Client(_settings(caching)) as client:
        yield client


@pytest.fixture(scope="module")
def upload(services: EmbeddedServices, make_picture: Callable[..., bytes]) -> Callable[..., str]:
    """Provide a function that stores a picture under a key and returns the key."""

    def put(key: str, seed: int) -> str:
        services.seaweedfs.client().put_object(
            Bucket=services.bucket, Key=key, Body=make_picture(seed, size=(70, 50))
        )
        return key

    return put


@pytest.fixture(scope="module")
def first(
    worker_process: Callable[..., Any],
    caching: dict[str, str],
    client: Client,
    services: EmbeddedServices,
    upload: Callable[..., str],
) -> Event:
    """Return the event of an upload that a real model judged; its worker is gone."""
    worker = worker_process(caching)
    check_id = client.submit(services.bucket, upload("cache/first.jpg", 1), metadata={"user": 1})
    event = client.wait_for(check_id)[check_id]
    worker.wait_for_event("image_checked", check_id=check_id)
    assert worker.stop() == 0
    return event


@pytest.fixture(scope="module")
def modelless(caching: dict[str, str], first: Event, tmp_path_factory: Any) -> Iterator[RunningWorker]:
    """Provide a worker with the same bundle whose model raises when it is asked."""
    assert first
    log = tmp_path_factory.mktemp("modelless") / "worker.log"
    worker = RunningWorker(caching, log, "tests.workers.modelless_worker")
    worker.start()
    yield worker
    worker.stop()


def _verdict(event: Event) -> Verdict:
    assert isinstance(event.envelope.data, Verdict)
    return event.envelope.data


def test_the_same_bytes_under_another_key_have_their_verdict_without_the_model(
    modelless: RunningWorker,
    client: Client,
    services: EmbeddedServices,
    upload: Callable[..., str],
    first: Event,
) -> None:
    """The second check has an event of its own, with the first one's score, facts and thumbnail."""
    check_id = client.submit(services.bucket, upload("cache/again.jpg", 1), metadata={"user": 2})
    event = client.wait_for(check_id)[check_id]
    Draft202012Validator(json.loads(SCHEMA.read_text())).validate(json.loads(event.raw))
    before, again = _verdict(first), _verdict(event)
    assert (before.cached, again.cached, again.batch_size) == (False, True, 0)
    assert (again.score, again.verdict, again.picture) == (before.score, before.verdict, before.picture)
    assert event.thumbnail == first.thumbnail
    assert (again.metadata, event.envelope.subject[-9:]) == ({"user": 2}, "again.jpg")
    assert event.envelope.id != first.envelope.id
    assert again.durations_ms.keys() == {"queue_wait", "fetch", "cache", "total"}
    line = modelless.wait_for_event("image_checked", check_id=check_id)[0]
    assert line["cached"] is True


def test_other_bytes_are_not_found(
    modelless: RunningWorker, client: Client, services: EmbeddedServices, upload: Callable[..., str]
) -> None:
    """The model is asked for a picture that differs; here it raises, and a dead letter says so."""
    check_id = client.submit(services.bucket, upload("cache/other.jpg", 2))
    with pytest.raises(NoVerdictError) as failed:
        client.wait_for(check_id)
    assert "the model was asked for 1 pictures" in failed.value.dead_letters[check_id].detail
    assert not modelless.wait_for_event("image_checked", count=0, check_id=check_id)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _judged(data: bytes, settings: Settings, **changes: Any) -> Judgement:
    facts = PictureFacts(sha256=_digest(data), width=70, height=50, format="JPEG", bytes=len(data))
    values = {
        "score": 0.25,
        "picture": facts,
        "thumbnail": b"\x89PNG\r\n\x1a\n\xff\xfe",
        "thumbnail_side": settings.thumbnail_side_pixels,
    }
    return Judgement(**{**values, **changes})


@pytest.fixture
def settings(caching: dict[str, str]) -> Settings:
    """Return the settings of a cache in a database that is empty."""
    url = caching["DNF_REDIS_URL"].rpartition("/")[0] + "/209"
    with redis.Redis.from_url(url) as broker:
        broker.flushdb()
    return _settings({**caching, "DNF_REDIS_URL": url})


def test_a_verdict_is_found_by_content_model_and_policy_until_it_expires(settings: Settings) -> None:
    """Another content, model or policy finds nothing; the value goes away by itself."""
    cache, other = VerdictCache.connect(settings, "a" * 64), VerdictCache.connect(settings, "b" * 64)
    judged = _judged(b"bytes", settings)
    cache.store(judged, "default")
    assert cache.find(_digest(b"bytes"), "default") == judged
    assert cache.find(_digest(b"other bytes"), "default") is None
    assert cache.find(_digest(b"bytes"), "strict") is None
    assert other.find(_digest(b"bytes"), "default") is None
    with redis.Redis.from_url(settings.redis_url.get_secret_value()) as broker:
        (key,) = broker.keys("*")
        assert 0 < broker.ttl(key) <= settings.verdict_cache_ttl_seconds
    cache.close()
    other.close()


def test_without_a_time_nothing_is_kept_and_nothing_is_found(settings: Settings) -> None:
    """The cache is off unless it is asked for, and connects to nothing then."""
    off = VerdictCache.connect(settings.model_copy(update={"verdict_cache_ttl_seconds": 0}), "a" * 64)
    off.store(_judged(b"bytes", settings), "default")
    assert not off.active
    with redis.Redis.from_url(settings.redis_url.get_secret_value()) as broker:
        assert broker.dbsize() == 0
    assert Settings.model_fields["verdict_cache_ttl_seconds"].default == 0


VALUES: dict[str, Callable[[Judgement], bytes | str]] = {
    "no JSON": lambda _: b"\x80\x04\x95pickled",
    "half of a value": lambda judged: judged.model_dump_json()[:90],
    "another object": lambda _: '{"score": 0.1}',
    "a score beyond one": lambda judged: judged.model_dump_json().replace("0.25", "1.25"),
    "a score that is no number": lambda judged: judged.model_dump_json().replace("0.25", "NaN"),
    "a field too many": lambda judged: judged.model_dump_json().replace("{", '{"verdict":"real",', 1),
    "the value of other bytes": lambda judged: judged.model_dump_json().replace(
        judged.picture.sha256, "0" * 64
    ),
    "a picture beyond the limit": lambda judged: judged.model_dump_json().replace("70", "70000000"),
    "a thumbnail of another size": lambda judged: judged.model_dump_json().replace(":128", ":64"),
    "a thumbnail that is no PNG": lambda judged: judged.model_copy(
        update={"thumbnail": b"<svg onload=alert(1)>"}
    ).model_dump_json(),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_value_that_is_not_what_was_kept_is_not_believed(settings: Settings, name: str) -> None:
    """It is as if nothing had been found, with a line in the log."""
    cache = VerdictCache.connect(settings, "a" * 64)
    judged = _judged(b"bytes", settings)
    cache.store(judged, "default")
    with redis.Redis.from_url(settings.redis_url.get_secret_value()) as broker:
        (key,) = broker.keys("*")
        broker.set(key, VALUES[name](judged))
    with capture_logs() as lines:
        assert cache.find(_digest(b"bytes"), "default") is None
    (line,) = lines
    assert line["event"] in {"cached_verdict_unreadable", "cached_verdict_ignored"}
    cache.store(judged, "default")
    assert cache.find(_digest(b"bytes"), "default") == judged
    cache.close()


def test_a_cache_that_cannot_be_reached_finds_nothing_and_delays_one_check(
    settings: Settings, tmp_path: Path
) -> None:
    """Neither a server that is gone nor one that is full nor a key of another type is an error."""
    gone = settings.model_copy(update={"redis_url": SecretStr(f"redis://127.0.0.1:{free_ports(1)[0]}/0")})
    cache = VerdictCache.connect(gone, "a" * 64)
    cache.store(_judged(b"bytes", settings), "default")
    assert cache.find(_digest(b"bytes"), "default") is None
    server = Valkey(tmp_path / "valkey", options=["--maxmemory", "1mb"])
    server.start()
    full = VerdictCache.connect(settings.model_copy(update={"redis_url": SecretStr(server.url)}), "a" * 64)
    full.store(_judged(b"bytes", settings), "default")
    assert full.find(_digest(b"bytes"), "default") is None
    server.stop()
    cache.close()
    full.close()
